# Every package that the list of requirements names, with where it is, or why it has no place. checks.nix holds each
# answer against what is really there.
let
  base = attribute: {
    where = "base";
    inherit attribute;
  };
  shell = attribute: {
    where = "shell";
    inherit attribute;
  };
  image = service: attribute: {
    where = "image";
    inherit service attribute;
  };
  none = why: {
    where = "none";
    inherit why;
  };
in
{
  # to build
  "Rust toolchain" = shell "rustc";
  build-essential = none "a compiler and a linker are in every build (stdenv), and in no image";
  clang = shell "clang";
  libprotobuf-dev = shell "protobuf";
  libvirt-dev = shell "libvirt";
  linux-headers = shell "linuxHeaders";
  llvm = shell "llvm";
  pkg-config = shell "pkg-config";
  protobuf-compiler = base "protobuf";

  # to run
  bridge-utils = base "bridge-utils";
  cloud-utils = base "cloud-utils";
  iproute2 = base "iproute2";
  libbpf-dev = base "libbpf";
  libc6 = none "comes with whatever is linked against it, in every image";
  libdbus-1-dev = base "dbus";
  libfuse-dev = base "fuse3";
  libguestfs-tools = none "images are written without mounting them (mke2fs's format, in Rust), and it brings a second kernel";
  libnetfilter-queue-dev = base "libnetfilter_queue";
  libnl-3 = base "libnl";
  libnl-3-dev = base "libnl";
  libnl-route-3 = base "libnl";
  libnl-route-3-dev = base "libnl";
  libseccomp-dev = base "libseccomp";
  libsqlite3 = base "sqlite";
  libsqlite3-dev = base "sqlite";
  libssl-dev = base "openssl";
  libudev-dev = base "udev";
  liburing-dev = base "liburing";
  libvirt = none "vmm-service runs QEMU itself, over QMP; a second manager would own the same machines";
  qemu-kvm = base "qemu";
  qemu-utils = base "qemu";
  socat = base "socat";
  ssh = base "openssh";
  zlib1g-dev = base "zlib";

  # named by what they are for
  "dns-related libraries" = none "hickory, linked into form-dns";
  "iptables/nftables" = image "formnet" "nftables";
  "Database drivers" = none "SQLite, linked into form-state";
  "Message broker libraries" = none "linked into form-broker, which does not exist yet";
  "Package management libraries" = none "tar, zstd and OCI, linked into form-pack-manager";
  "P2P networking libraries" = none "linked into form-p2p, which does not exist yet";
  "Development-specific dependencies" = none "mock-server does not exist yet";
}
