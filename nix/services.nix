# The services: a row each. Packages, images, ports, users, capabilities, volumes, health checks, start scripts, the
# files under deploy/, the NixOS module and the table in docs/images.md all come from here.
#
# Only literals, so that tools without a Nix evaluator read it too (cargo xtask deploy does). table.nix says what a row
# has; a field too few or too many ends the evaluation with its name.
{
  form-state = {
    crate = "form-state";
    description = "The resource store of Formation: the API, the scheduler, accounts and tokens";
    script = "run-form-state.sh";
    runs = "once"; # in the cluster, or on each node
    network = "own"; # or the host's
    ports = [
      {
        name = "api";
        port = 3004;
        protocol = "tcp";
        key = "listen";
        open = "everyone";
      }
    ];
    probe = "api";
    user = "formation";
    capabilities = [ ];
    devices = [ ];
    volumes = [ "/var/lib/formation/state" ];
    runtime = [ ];
    configuration = {
      listen = "0.0.0.0:3004";
    };
    environment = { };
    needs = [ ];
    packages = [ ];
    files = {
      "/etc/formation/auth/.env.example" = "deploy/auth.env.example";
      "/var/lib/formation/marketplace/openapi.yaml" = "docs/openapi.yaml";
    };
    guest = false;
    memory_mib = 512;
    unique_mib = 15; # compressed, beside the shared base
    slim_mib = 40; # compressed, in all
  };

  form-dns = {
    crate = "form-dns";
    description = "The names of Formation: authoritative DNS for the cluster's zones";
    script = "run-form-dns.sh";
    runs = "each";
    network = "own";
    ports = [
      {
        name = "dns-udp";
        port = 53;
        protocol = "udp";
        key = "listen";
        open = "everyone";
      }
      {
        name = "dns-tcp";
        port = 53;
        protocol = "tcp";
        key = "listen";
        open = "everyone";
      }
      {
        name = "admin";
        port = 3005;
        protocol = "tcp";
        key = "admin";
        open = "cluster";
      }
    ];
    probe = "admin";
    user = "formation";
    capabilities = [ ];
    devices = [ ];
    volumes = [ ];
    runtime = [ ];
    configuration = {
      listen = [ "0.0.0.0:53" ];
      admin = "0.0.0.0:3005";
      state = "form-state:3004";
    };
    environment = {
      state = "form-state:3004";
    };
    needs = [ "form-state" ];
    packages = [ ];
    files = { };
    guest = false;
    memory_mib = 256;
    unique_mib = 15;
    slim_mib = 40;
  };

  form-pack-manager = {
    crate = "form-pack-manager";
    description = "The builds of Formation: a Formfile in, an OCI image and a root disk out; and the packages' store";
    script = "run-pack-manager.sh";
    runs = "once";
    network = "own";
    ports = [
      {
        name = "packages";
        port = 3003;
        protocol = "tcp";
        key = "listen";
        open = "everyone";
      }
    ];
    probe = "packages";
    user = "formation";
    capabilities = [ ];
    devices = [ ];
    volumes = [ "/var/lib/formation/packages" ];
    runtime = [ ];
    configuration = {
      listen = "0.0.0.0:3003";
      public_url = "https://form-pack-manager:3003";
      state = "form-state:3004";
    };
    environment = {
      state = "form-state:3004";
    };
    needs = [ "form-state" ];
    packages = [ ];
    files = { };
    guest = false;
    memory_mib = 1024;
    unique_mib = 15;
    slim_mib = 40;
  };

  formnet = {
    crate = "formnet";
    description = "The encrypted network of Formation: one node's end of it";
    script = "run-formnet.sh";
    runs = "each";
    # Its interfaces, routes and rules are the host's: machines use them, and they outlive the container.
    network = "host";
    ports = [
      {
        name = "mesh";
        port = 51820;
        protocol = "udp";
        key = "port";
        open = "everyone";
      }
      {
        name = "admin";
        port = 3001;
        protocol = "tcp";
        key = "listen";
        open = "everyone";
      }
    ];
    probe = "admin";
    # It makes interfaces, routes and rules, and may do nothing else that others may not.
    user = "root";
    capabilities = [ "NET_ADMIN" ];
    devices = [ "/dev/net/tun" ];
    volumes = [ "/var/lib/formation/formnet" ];
    # The embedded WireGuard, which goes on without formnet.
    runtime = [ "/run/wireguard" ];
    configuration = {
      listen = "0.0.0.0:3001";
    };
    environment = {
      state = "form-state:3004";
    };
    needs = [ "form-state" ];
    packages = [
      "iproute2"
      "nftables"
      "wireguard-tools"
    ];
    files = { };
    guest = false;
    memory_mib = 128;
    unique_mib = 30;
    slim_mib = 60;
  };

  vmm-service = {
    crate = "vmm-service";
    description = "The virtual machines of one node of Formation";
    script = "run-vmm-service.sh";
    runs = "each";
    # Taps are the host's: the machines outlive the container, and the node reaches them.
    network = "host";
    ports = [
      {
        name = "consoles";
        port = 3002;
        protocol = "tcp";
        key = "listen";
        open = "everyone";
      }
    ];
    probe = "consoles";
    # It opens taps, and gives each QEMU a user of its own, without capabilities, whom it can end.
    user = "root";
    capabilities = [
      "KILL"
      "NET_ADMIN"
      "SETGID"
      "SETPCAP"
      "SETUID"
    ];
    devices = [
      "/dev/kvm"
      "/dev/net/tun"
    ];
    volumes = [ "/var/lib/formation/machines" ];
    runtime = [ ];
    configuration = {
      listen = "0.0.0.0:3002";
    };
    environment = {
      state = "form-state:3004";
      pack_url = "https://form-pack-manager:3003";
    };
    needs = [
      "form-state"
      "form-pack-manager"
      "formnet"
    ];
    # QEMU comes with the base image, and is named for the slim one.
    packages = [
      "qemu"
      "cloud-hypervisor"
    ];
    files = { };
    guest = true;
    memory_mib = 512;
    unique_mib = 120;
    slim_mib = 400;
  };
}
