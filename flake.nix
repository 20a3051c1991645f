{
  description = "Formation: one private cloud out of a few Linux machines";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixpkgs-unstable";
    crane.url = "github:ipetkov/crane";
  };

  outputs =
    {
      self,
      nixpkgs,
      crane,
    }:
    let
      inherit (nixpkgs) lib;
      table = import ./nix/table.nix { inherit lib; };
      services = table.check (import ./nix/services.nix);
      forAll = lib.genAttrs [
        "x86_64-linux"
        "aarch64-linux"
      ];
      perSystem = forAll (
        system:
        let
          pkgs = nixpkgs.legacyPackages.${system};
          call = file: args: import file (scope // args);
          scope = {
            inherit
              lib
              pkgs
              crane
              services
              table
              ;
            root = ./.;
            release = call ./nix/release.nix { inherit self; };
            rust = call ./nix/crane.nix { };
            guest = call ./nix/guest.nix { };
            base = call ./nix/base.nix { };
            images = call ./nix/images.nix { };
            checks = call ./nix/checks.nix { };
            shell = call ./nix/shell.nix { };
          };
        in
        scope
      );
      of = f: lib.mapAttrs (_: f) perSystem;
    in
    {
      packages = of (
        s: s.rust.packages // s.guest // s.images.packages // { default = s.rust.packages.form; }
      );
      checks = of (s: s.checks);
      devShells = of (s: {
        default = s.shell;
      });
      apps = of (s: s.release.apps s.images.all (lib.mapAttrs (_: s: s.images.all) perSystem));
      formatter = of (s: s.pkgs.nixfmt);
      nixosModules.default = import ./nix/module.nix { inherit self services; };
    };
}
