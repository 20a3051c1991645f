# What a guest boots: a kernel, and an initramfs with form-init and the modules that it needs.
{ pkgs, rust, ... }:
let
  kernel = pkgs.linux;
  modules = kernel.modules or kernel;
  # bzImage or Image, as the architecture has it.
  image = kernel.target;
in
rec {
  # What `guest_dir` names: both of them.
  guest = pkgs.symlinkJoin {
    name = "formation-guest";
    paths = [
      guest-kernel
      guest-initramfs
    ];
  };

  guest-kernel = pkgs.runCommand "formation-guest-kernel-${kernel.version}" { } ''
    install -Dm444 ${kernel}/${image} $out/vmlinuz
  '';

  # The same program packs it that a developer runs, so that there is one list of modules and one archive writer. It wants
  # them uncompressed, as form-init hands them to the kernel as they are.
  guest-initramfs =
    pkgs.runCommand "formation-guest-initramfs" { nativeBuildInputs = [ pkgs.xz ]; }
      ''
        cp -r ${modules}/lib/modules/${kernel.modDirVersion} modules
        chmod -R u+w modules
        find modules -name '*.ko.xz' -exec unxz {} +
        mkdir $out
        ${rust.packages.xtask}/bin/xtask initramfs --init ${rust.packages.form-init}/bin/form-init --modules modules \
          --out $out/initramfs
      '';
}
