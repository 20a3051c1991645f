# What all images have in common: the base image, and the bare directories that the slim images start from.
{
  lib,
  pkgs,
  release,
  ...
}:
let
  id = 65532;
  directories = [
    "app"
    "etc/formation"
    "etc/formation/auth"
    "var/lib/formation"
    "var/log/formation"
  ];

  # A machine of a cluster has no screen and no sound, and runs guests of its own kind.
  qemu = pkgs.qemu.override {
    hostCpuOnly = true;
    enableDocs = false;
    alsaSupport = false;
    gtkSupport = false;
    guestAgentSupport = false;
    jackSupport = false;
    libiscsiSupport = false;
    openGLSupport = false;
    pipewireSupport = false;
    pulseSupport = false;
    sdlSupport = false;
    smartcardSupport = false;
    spiceSupport = false;
    tpmSupport = false;
    vncSupport = false;
  };

  etc = pkgs.runCommand "formation-etc" { } ''
    mkdir -p $out/etc
    cat > $out/etc/passwd <<EOF
    root:x:0:0:root:/root:/bin/sh
    nobody:x:65534:65534:nobody:/var/empty:/bin/false
    formation:x:${toString id}:${toString id}:Formation:/var/lib/formation:/bin/false
    EOF
    cat > $out/etc/group <<EOF
    root:x:0:
    nogroup:x:65534:
    formation:x:${toString id}:
    EOF
    # Names of a container's own hosts file come before what a name server says.
    echo 'hosts: files dns' > $out/etc/nsswitch.conf
    mkdir -p $out/etc/ssl/certs
    ln -s ${pkgs.cacert}/etc/ssl/certs/ca-bundle.crt $out/etc/ssl/certs/ca-certificates.crt
    ln -s ${pkgs.cacert}/etc/ssl/certs/ca-bundle.crt $out/etc/ssl/certs/ca-bundle.crt
  '';

  # What the project was ordered with, as its runtime outputs: no headers, no compiler.
  packages = {
    inherit qemu;
    bash = pkgs.bashNonInteractive;
    inherit (pkgs)
      bridge-utils
      cloud-utils
      coreutils
      dbus
      fuse3
      iproute2
      libbpf
      libnetfilter_queue
      libnl
      libseccomp
      liburing
      openssl
      openssh
      protobuf
      socat
      sqlite
      tini
      tzdata
      udev
      zlib
      ;
  };
  runtime = lib.concatMap (package: [
    (lib.getBin package)
    (lib.getLib package)
  ]) (lib.attrValues packages);
  environment = pkgs.buildEnv {
    name = "formation-base";
    paths = lib.unique runtime;
    pathsToLink = [
      "/bin"
      "/lib"
    ];
    ignoreCollisions = true;
  };
  zoneinfo = pkgs.runCommand "formation-zoneinfo" { } ''
    mkdir -p $out/usr/share
    ln -s ${pkgs.tzdata}/share/zoneinfo $out/usr/share/zoneinfo
  '';

  # Times are constant, so that a layer changes only with what is in it; `created` alone tells the commit's date.
  common = {
    inherit (release) created;
    mtime = "1970-01-01T00:00:01Z";
    # Names of users are in /etc/passwd only, so that a layer does not depend on whose machine built it.
    uname = "";
    gname = "";
    fakeRootCommands = ''
      mkdir -m 1777 tmp
      mkdir -m 0700 root
      mkdir -m 0555 -p var/empty
      for directory in ${toString directories}; do
        mkdir -p $directory
        chown ${toString id}:${toString id} $directory
      done
      chmod 0750 etc/formation/auth var/log/formation
    '';
  };
  variables = [
    "PATH=/usr/local/bin:/bin"
    "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"
  ];
in
{
  inherit
    id
    packages
    common
    qemu
    ;
  # Certificates, users and directories, and nothing else.
  bare = [ etc ];
  inherit variables;
  logs = "/var/log/formation";

  image = pkgs.dockerTools.buildLayeredImage (
    common
    // {
      name = "formation/base";
      tag = release.version;
      contents = [
        etc
        zoneinfo
        environment
      ];
      maxLayers = 30;
      config = {
        Env = variables ++ [ "TZDIR=/usr/share/zoneinfo" ];
        User = "${toString id}:${toString id}";
        WorkingDir = "/app";
        Volumes."/var/log/formation" = { };
        Labels = release.labels {
          title = "formation/base";
          description = "What all images of Formation share";
        };
      };
    }
  );
  # All that the base image has of the store.
  roots = [
    environment
    etc
    zoneinfo
  ];
}
