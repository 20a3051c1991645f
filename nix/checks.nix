# What `nix flake check` runs, beside building every package.
{
  lib,
  pkgs,
  root,
  services,
  table,
  rust,
  images,
  base,
  shell,
  ...
}:
let
  inherit (pkgs) runCommand;
  fail =
    name: problems: lib.throwIf (problems != [ ]) "${name}: ${lib.concatStringsSep "; " problems}";

  answers = import ./seeds.nix;
  # Where a list of requirements says "libfoo-dev", nobody wants to find out in a cluster that nothing answers it.
  asked = lib.filter (line: line != "") (lib.splitString "\n" (lib.readFile ./seeds.txt));
  inShell = map (input: input.outPath) (shell.nativeBuildInputs ++ shell.buildInputs);
  problem =
    name: answer:
    if answer.where == "none" then
      lib.optional (answer.why == "") "${name} has no place and no reason"
    else if answer.where == "base" then
      lib.optional (!base.packages ? ${answer.attribute}) "${name}: the base has no ${answer.attribute}"
    else if answer.where == "image" then
      lib.optional (
        !lib.elem answer.attribute services.${answer.service}.packages
      ) "${name}: ${answer.service} has no ${answer.attribute}"
    else
      lib.optional (
        !lib.any (input: lib.elem input inShell) [
          pkgs.${answer.attribute}.outPath
          (lib.getDev pkgs.${answer.attribute}).outPath
        ]
      ) "${name}: the shell has no ${answer.attribute}";
  seeds =
    map (name: "${name} has no answer in seeds.nix") (lib.subtractLists (lib.attrNames answers) asked)
    ++ map (name: "nobody asked for ${name}") (lib.subtractLists asked (lib.attrNames answers))
    ++ lib.concatLists (lib.mapAttrsToList problem answers);

  missing = lib.filter (name: !services ? ${name}) table.planned;
  strangers = lib.subtractLists table.planned (lib.attrNames services);
in
rust.checks
// images.contracts
// {
  services = fail "services.nix" (map (name: "${name} is none of the planned services") strangers) (
    runCommand "services" { } ''
      echo "services: ${toString (lib.length (lib.attrNames services))} of ${toString (lib.length table.planned)}"
      echo "missing: ${toString missing}"
      echo ${lib.escapeShellArg (toString missing)} > $out
    ''
  );

  seeds = fail "seeds.nix" seeds (
    runCommand "seeds" { closure = pkgs.closureInfo { rootPaths = base.roots; }; } ''
      for path in ${
        lib.concatMapStringsSep " " (package: "${lib.getLib package}") (lib.attrValues base.packages)
      }; do
        grep -qxF $path $closure/store-paths || { echo "$path is not in the base" >&2; exit 1; }
      done
      touch $out
    ''
  );

  nixfmt = runCommand "nixfmt" { nativeBuildInputs = [ pkgs.nixfmt ]; } ''
    nixfmt --check ${root + "/flake.nix"} ${root + "/nix"}/*.nix
    touch $out
  '';

  # What is under deploy/ and in docs/images.md is what the rows give.
  deploy =
    runCommand "deploy"
      {
        src = lib.fileset.toSource {
          inherit root;
          fileset = lib.fileset.unions [
            (root + "/Cargo.toml")
            (root + "/deploy")
            (root + "/docs/images.md")
            (root + "/nix/services.nix")
          ];
        };
      }
      ''
        cd $src
        ${rust.packages.xtask}/bin/xtask deploy --check
        touch $out
      '';
}
