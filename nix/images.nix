# An image for each service, twice: on the shared base, and slim.
{
  lib,
  pkgs,
  root,
  services,
  table,
  release,
  rust,
  guest,
  base,
  ...
}:
let
  inherit (pkgs) runCommand writeText;
  python = "${pkgs.python3}/bin/python3";
  # A string, a number or a list of such is written in TOML as it is in JSON.
  toml =
    name: keys:
    writeText name (
      lib.concatStrings (lib.mapAttrsToList (key: value: "${key} = ${builtins.toJSON value}\n") keys)
    );

  # Beside the program: what a row's `packages` names. QEMU is the base's own, so that it is there once.
  packagesOf =
    service: map (name: if name == "qemu" then base.qemu else pkgs.${name}) service.packages;

  # The firmware that cloud-hypervisor boots a whole disk with, under the name that Formation looks for.
  firmware = runCommand "hypervisor-fw" { } ''
    install -Dm444 ${pkgs.OVMF-cloud-hypervisor.fd}/FV/CLOUDHV.fd $out
  '';
  guestFiles = {
    "/var/lib/formation/kernel/vmlinuz" = "${guest.guest-kernel}/vmlinuz";
    "/var/lib/formation/kernel/initramfs" = "${guest.guest-initramfs}/initramfs";
  }
  // lib.optionalAttrs pkgs.stdenv.hostPlatform.isx86_64 {
    "/var/lib/formation/kernel/hypervisor-fw" = firmware;
  };

  # Signals reach the service itself: tini passes them on, and the script becomes the service.
  script =
    service:
    pkgs.writeTextFile {
      name = service.script;
      executable = true;
      text = ''
        #!${lib.getExe pkgs.bashNonInteractive}
        set -eu
        exec /usr/local/bin/${service.crate} "$@"
      '';
    };

  # What is in the image beside the store, as links into it and plain files.
  rootOf =
    service:
    let
      program = rust.packages.${service.crate};
      config = toml "${service.name}.toml" service.configuration;
      files =
        lib.mapAttrs (_: path: root + "/${path}") service.files
        // lib.optionalAttrs service.guest guestFiles;
    in
    runCommand "${service.name}-root" { } ''
      mkdir -p $out/usr/local/bin $out/etc/formation/${service.name}
      ln -s ${program}/bin/${service.crate} $out/usr/local/bin/${service.crate}
      cp ${script service} $out/usr/local/bin/${service.script}
      cp ${config} $out/etc/formation/${service.name}/config.toml
      # A configuration that the program refuses ends the build here, and not in somebody's cluster.
      ${program}/bin/${service.crate} --config ${config} --check-config > /dev/null
      ${lib.concatStrings (
        lib.mapAttrsToList (to: from: ''
          mkdir -p $out${dirOf to}
          ln -s ${from} $out${to}
        '') files
      )}
      ${lib.optionalString (service.packages != [ ]) ''
        mkdir -p $out/usr/local/libexec
        for program in ${
          lib.concatMapStringsSep " " (package: "${lib.getBin package}/bin/*") (packagesOf service)
        }; do
          ln -sf $program $out/usr/local/libexec/
        done
      ''}
    '';

  exposed = service: map (port: "${toString port.port}/${port.protocol}") service.ports;
  second = 1000000000;
  configOf = service: {
    User = if service.user == "root" then "0:0" else "${toString base.id}:${toString base.id}";
    WorkingDir = "/app";
    Env = map (
      entry: if lib.hasPrefix "PATH=" entry then "${entry}:/usr/local/libexec" else entry
    ) base.variables;
    Entrypoint = [
      (lib.getExe pkgs.tini)
      "--"
      "/usr/local/bin/${service.script}"
    ];
    ExposedPorts = lib.genAttrs (exposed service) (_: { });
    Volumes = lib.genAttrs (service.volumes ++ [ base.logs ]) (_: { });
    Healthcheck = {
      Test = [
        "CMD"
        "/usr/local/bin/${service.crate}"
        "--health"
      ];
      Interval = 10 * second;
      Timeout = 5 * second;
      StartPeriod = 20 * second;
      Retries = 3;
    };
    StopSignal = "SIGTERM";
    Labels =
      release.labels {
        title = "formation/${service.name}";
        inherit (service) description;
      }
      // {
        "formation.capabilities" = lib.concatStringsSep "," service.capabilities;
      };
  };

  # The service's own directories, on top of those that every image has.
  directories = service: ''
    for directory in ${toString (service.volumes ++ [ "/etc/formation/${service.name}/tls" ])}; do
      mkdir -p .$directory
      chown ${(configOf service).User} .$directory
      chmod 0700 .$directory
    done
  '';

  # Each store path that the base has not is a layer, the service's own last: then an update of the service moves its
  # layer and no other.
  layering =
    runCommand "layering.json"
      {
        nativeBuildInputs = [ pkgs.jq ];
        closure = pkgs.closureInfo {
          rootPaths = base.roots;
        };
      }
      ''
        jq --raw-input --slurp 'split("\n") | map(select(. != "")) as $base |
          [["remove_paths", $base], ["popularity_contest"], ["limit_layers", 40]]' $closure/store-paths > $out
      '';

  full =
    service:
    pkgs.dockerTools.buildLayeredImage (
      base.common
      // {
        name = "formation/${service.name}";
        tag = release.version;
        fromImage = base.image;
        contents = [ (rootOf service) ];
        layeringPipeline = layering;
        # Directories that a layer names are as that layer says, also those that the base has.
        fakeRootCommands = base.common.fakeRootCommands + directories service;
        config = configOf service;
      }
    );

  slim =
    service:
    pkgs.dockerTools.buildLayeredImage (
      base.common
      // {
        name = "formation/${service.name}";
        tag = "${release.version}-slim";
        contents = base.bare ++ [ (rootOf service) ];
        fakeRootCommands = base.common.fakeRootCommands + directories service;
        maxLayers = 40;
        config = configOf service;
      }
    );

  sbom =
    {
      image,
      name,
      crate,
    }:
    runCommand "${name}.cdx.json"
      {
        __structuredAttrs = true;
        exportReferencesGraph.graph = image.roots;
        nativeBuildInputs = [ pkgs.jq ];
      }
      ''
        jq .graph "$NIX_ATTRS_JSON_FILE" > graph.json
        ${python} ${./tools/sbom.py} graph.json ${root + "/Cargo.lock"} ${writeText "needed.json" (builtins.toJSON rust.needed)} \
          ${crate} ${name} ${release.version} ${release.created} > "''${outputs[out]}"
      '';

  # As it goes to a registry, with its bill of materials.
  layout =
    {
      image,
      sbom,
      from ? null,
    }:
    runCommand "${lib.replaceStrings [ "/" ] [ "-" ] image.imageName}-oci" { } ''
      ${python} ${./tools/oci.py} ${image} $out ${lib.optionalString (from != null) "--base ${from}"} \
        --document application/vnd.cyclonedx+json ${sbom}
    '';

  finish =
    {
      image,
      roots,
      name,
      variant,
      crate ? "-",
      from ? null,
    }:
    let
      bill = sbom {
        inherit name crate;
        image = { inherit roots; };
      };
    in
    image.overrideAttrs (old: {
      passthru = old.passthru or { } // {
        inherit variant name;
        repository = image.imageName;
        sbom = bill;
        oci = layout {
          inherit image from;
          sbom = bill;
        };
      };
    });

  baseImage = finish {
    inherit (base) image;
    inherit (base) roots;
    name = "base-image";
    variant = "";
  };
  serviceImages = lib.concatMapAttrs (name: service: {
    "${name}-image" = finish {
      image = full service;
      roots = base.roots ++ [ (rootOf service) ];
      name = "${name}-image";
      variant = "";
      inherit (service) crate;
      from = baseImage.oci;
    };
    "${name}-image-slim" = finish {
      image = slim service;
      roots = base.bare ++ [
        (rootOf service)
        pkgs.tini
      ];
      name = "${name}-image-slim";
      variant = "-slim";
      inherit (service) crate;
    };
  }) services;
  all = {
    base-image = baseImage;
  }
  // serviceImages;

  expected =
    service: budget:
    writeText "${service.name}-contract.json" (
      builtins.toJSON {
        config = removeAttrs (configOf service) [ "Env" ];
        executables = [
          "/usr/local/bin/${service.crate}"
          "/usr/local/bin/${service.script}"
          (lib.getExe pkgs.tini)
        ];
        files = [
          "/etc/passwd"
          "/etc/group"
          "/etc/nsswitch.conf"
          "/etc/ssl/certs/ca-certificates.crt"
          "/etc/formation/${service.name}/config.toml"
        ]
        ++ lib.attrNames service.files
        ++ lib.optionals service.guest (lib.attrNames guestFiles);
        directories =
          lib.genAttrs (service.volumes ++ [ "/etc/formation/${service.name}/tls" ]) (
            _: if service.user == "root" then 0 else base.id
          )
          // lib.genAttrs [
            "/app"
            "/etc/formation"
            "/etc/formation/auth"
            "/var/lib/formation"
            "/var/log/formation"
          ] (_: base.id);
        inherit budget;
      }
    );
  contract =
    name: image: file: from:
    runCommand "contract-${name}" { } ''
      ${python} ${./tools/contract.py} ${file} ${image.oci} ${
        lib.optionalString (from != null) from
      } | tee $out
    '';
in
{
  inherit all;
  packages =
    all
    // lib.mapAttrs' (name: image: lib.nameValuePair "${name}-sbom" image.sbom) all
    // {
      all-images = pkgs.linkFarm "formation-images" (
        lib.mapAttrsToList (name: path: {
          name = "${name}.tar.gz";
          inherit path;
        }) all
      );
    };
  contracts = lib.concatMapAttrs (name: service: {
    "contract-${name}-image" = contract name all."${name}-image" (expected service {
      unique = service.unique_mib;
    }) baseImage.oci;
    "contract-${name}-image-slim" = contract "${name}-slim" all."${name}-image-slim" (expected service {
      total = service.slim_mib;
    }) null;
  }) services;
}
