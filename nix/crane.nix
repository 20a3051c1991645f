# The workspace's programs, and the checks that cargo makes.
#
# One build of all third-party crates serves everything here. A program is built from a tree in which the crates that it
# is made of are real and all others are crane's stubs: so an edit rebuilds only what it is part of, and yet cargo sees
# the whole workspace and gives every third-party crate the features that it was compiled with before.
{
  lib,
  pkgs,
  crane,
  services,
  root,
  ...
}:
let
  craneLib = crane.mkLib pkgs;
  inherit (lib) fileset;

  manifest = path: builtins.fromTOML (builtins.readFile (path + "/Cargo.toml"));
  workspace = manifest root;
  members =
    let
      crates = lib.filterAttrs (_: type: type == "directory") (builtins.readDir (root + "/crates"));
      paths = map (name: root + "/crates/${name}") (lib.attrNames crates) ++ [
        (root + "/examples/hello")
        (root + "/tests")
      ];
    in
    lib.listToAttrs (map (path: lib.nameValuePair (manifest path).package.name path) paths);

  # What a program is linked with, and what its build runs. Development dependencies are neither: no tests are built here.
  needed =
    name:
    let
      toml = manifest members.${name};
    in
    lib.attrNames (toml.dependencies or { } // toml.build-dependencies or { });
  # A crate and all of ours that it is compiled with.
  closure =
    crate:
    map (found: found.key) (
      lib.genericClosure {
        startSet = [ { key = crate; } ];
        operator =
          item: map (key: { inherit key; }) (lib.filter (name: members ? ${name}) (needed item.key));
      }
    );

  manifests = fileset.unions [
    (root + "/Cargo.toml")
    (root + "/Cargo.lock")
    (root + "/.cargo/config.toml")
  ];
  sources =
    files:
    fileset.toSource {
      inherit root;
      fileset = fileset.unions ([ manifests ] ++ files);
    };
  named = map (name: root + "/${name}");
  # All that cargo, rustfmt, clippy and deny read.
  compiled = named [
    "README.md"
    "clippy.toml"
    "crates"
    "deny.toml"
    "docs/openapi.yaml"
    "examples"
    "proto"
    "rustfmt.toml"
    "tests"
  ];
  everything = sources compiled;
  # Tests also hold the documents, the flake and what is made of its table to what the programs say.
  tested = sources (
    compiled
    ++ named [
      "ARCHITECTURE.md"
      "CONTRIBUTING.md"
      "deploy"
      "docs"
      "flake.lock"
      "flake.nix"
      "nix"
    ]
  );

  common = {
    pname = "formation";
    inherit (workspace.workspace.package) version;
    strictDeps = true;
    cargoVendorDir = craneLib.vendorCargoDeps { cargoLock = root + "/Cargo.lock"; };
  };
  stubs = craneLib.mkDummySrc { src = everything; };
  # What all programs share: built once, and for release alone.
  dependencies = craneLib.buildDepsOnly (
    common
    // {
      dummySrc = stubs;
      cargoExtraArgs = "--locked --workspace";
      cargoCheckCommand = "true";
      doCheck = false;
    }
  );
  # The checks are made with debug assertions and overflow checks on, as a developer's are: another profile, and so
  # another build of the same crates, with what only tests need.
  checkDependencies = craneLib.buildDepsOnly (
    common
    // {
      dummySrc = stubs;
      cargoExtraArgs = "--locked --workspace";
      CARGO_PROFILE = "dev";
    }
  );

  sourceOf =
    crate:
    let
      real = sources ([ (root + "/proto") ] ++ map (name: members.${name}) (closure crate));
    in
    pkgs.runCommand "${crate}-source" { } ''
      cp -r ${stubs} $out
      chmod -R u+w $out
      cp -rf --no-preserve=mode ${real}/. $out
    '';

  program =
    crate: args:
    craneLib.buildPackage (
      common
      // {
        pname = crate;
        src = sourceOf crate;
        cargoArtifacts = dependencies;
        cargoExtraArgs = "--locked --workspace --bin ${crate}";
        # The tests run once, for the whole workspace, in checks.
        doCheck = false;
        doInstallCargoArtifacts = false;
        meta = {
          inherit ((manifest members.${crate}).package) description;
          license = lib.licenses.asl20;
          mainProgram = crate;
          platforms = lib.platforms.linux;
        };
      }
      // args
    );

  target = pkgs.stdenv.hostPlatform.rust.rustcTarget;
  check = {
    inherit (common)
      pname
      version
      strictDeps
      cargoVendorDir
      ;
    src = everything;
  };
  withDependencies = check // {
    cargoArtifacts = checkDependencies;
    CARGO_PROFILE = "dev";
  };
in
{
  # Cargo.lock does not tell which of our crates' dependencies only their tests have.
  needed = lib.mapAttrs (name: _: needed name) members;

  packages =
    lib.genAttrs (
      [
        "form"
        "xtask"
      ]
      ++ map (service: service.crate) (lib.attrValues services)
    ) (crate: program crate { })
    // {
      # Process 1 of a guest has no libraries beside it. The gnu target can be linked statically, so there is no second
      # toolchain. The flags and the place of the static C library are for the target alone: procedural macros cannot be
      # static, and build scripts, which are not, must not find that library.
      form-init = program "form-init" {
        cargoArtifacts = null;
        CARGO_PROFILE = "guest";
        CARGO_BUILD_TARGET = target;
        cargoExtraArgs = lib.concatStringsSep " " [
          "--locked --package form-init"
          "--config \"target.${target}.rustflags=['-Ctarget-feature=+crt-static', '-Lnative=${pkgs.glibc.static}/lib']\""
        ];
      };
    };

  checks = {
    clippy = craneLib.cargoClippy (
      withDependencies
      // {
        cargoExtraArgs = "--locked --workspace";
        cargoClippyExtraArgs = "--all-targets -- --deny warnings";
      }
    );
    doc = craneLib.cargoDoc (
      withDependencies
      // {
        cargoExtraArgs = "--locked --workspace";
        env.RUSTDOCFLAGS = "--deny warnings";
      }
    );
    fmt = craneLib.cargoFmt check;
    deny = craneLib.cargoDeny check;
    nextest = craneLib.cargoNextest (
      withDependencies
      // {
        cargoExtraArgs = "--locked --workspace";
        src = tested;
        # All of them: those that want root, taps or virtual machines say what they lack and pass over it
        # (tests/src/lib.rs), and no other looks further than loopback.
        cargoNextestExtraArgs = "--no-fail-fast";
        nativeBuildInputs = [ pkgs.cacert ];
      }
    );
  };
}
