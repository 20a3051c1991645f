# What a developer has: the toolchain, what the checks run, and the seeds' libraries with their headers.
{
  lib,
  pkgs,
  ...
}:
pkgs.mkShell {
  strictDeps = true;
  nativeBuildInputs = with pkgs; [
    cargo
    cargo-deny
    cargo-nextest
    clang
    clippy
    dig
    dnsperf
    etcd
    iproute2
    jq
    llvm
    nftables
    nixfmt
    pkg-config
    protobuf
    qemu
    rust-analyzer
    rustc
    rustfmt
    skopeo
    umoci
    wireguard-tools
  ];
  buildInputs = map lib.getDev (
    with pkgs;
    [
      dbus
      fuse3
      libbpf
      libnetfilter_queue
      libnl
      libseccomp
      liburing
      libvirt
      linuxHeaders
      openssl
      protobuf
      sqlite
      udev
      zlib
    ]
  );
  # rust-analyzer reads the standard library from here.
  RUST_SRC_PATH = pkgs.rustPlatform.rustLibSrc;
}
