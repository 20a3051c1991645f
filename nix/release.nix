# What this tree is called, and how its images leave it.
{
  lib,
  pkgs,
  root,
  self,
  ...
}:
let
  package = (builtins.fromTOML (builtins.readFile (root + "/Cargo.toml"))).workspace.package;
  inherit (package) version license;

  # 20260131235959 -> 2026-01-31T23:59:59Z
  date = self.lastModifiedDate or "19700101000001";
  part = builtins.substring;
  created = "${part 0 4 date}-${part 4 2 date}-${part 6 2 date}T${part 8 2 date}:${part 10 2 date}:${part 12 2 date}Z";

  # What an app works on, a line an image: `repository variant path`; the variant is `.` or what its tags end with.
  listing =
    what: images:
    pkgs.writeText "images" (
      lib.concatMapStrings (
        image: "${image.repository} ${if image.variant == "" then "." else image.variant} ${what image}\n"
      ) (lib.attrValues images)
    );
  app = name: description: inputs: images: {
    type = "app";
    program = lib.getExe (
      pkgs.writeShellApplication {
        inherit name;
        runtimeInputs = [ pkgs.coreutils ] ++ inputs;
        text = ''
          images=${images}
          version=${version}
        ''
        + builtins.readFile ./tools/${name}.sh;
      }
    );
    meta = { inherit description; };
  };
in
{
  inherit version created;
  # A tree with changes that no commit has says so.
  revision = self.rev or self.dirtyRev or "unknown";

  labels =
    { title, description }:
    lib.mapAttrs' (name: lib.nameValuePair "org.opencontainers.image.${name}") {
      inherit
        title
        description
        version
        created
        ;
      licenses = license;
      revision = self.rev or self.dirtyRev or "unknown";
      # Without a place on the web, the hash of the sources names them.
      source = package.repository or "nar:${self.narHash}";
    };

  # `everywhere`: for each system, its images.
  apps =
    images: everywhere:
    let
      layouts = listing (image: image.oci);
    in
    {
      publish = app "publish" "Pushes all images to a registry" [
        pkgs.jq
        pkgs.skopeo
        pkgs.cosign
      ] (pkgs.concatText "images" (lib.mapAttrsToList (system: images: layouts images) everywhere));
      # For a machine that can build only for itself.
      publish-this-system = app "publish" "Pushes this system's images" [
        pkgs.jq
        pkgs.skopeo
        pkgs.cosign
      ] (layouts images);
      load = app "load" "Loads all images into docker or podman" [ pkgs.gzip ] (
        listing (image: image) images
      );
      scan = app "scan" "Looks each image's contents up among known vulnerabilities" [ pkgs.grype ] (
        listing (image: image.sbom) images
      );
    };
}
