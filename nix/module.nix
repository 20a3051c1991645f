# NixOS: each service as the unit under deploy/systemd runs it.
{
  self,
  services,
}:
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkEnableOption mkOption types;
  cfg = config.services.formation;
  enabled = lib.filterAttrs (name: _: cfg.${name}.enable) services;

  # The unit is the one that other distributions get, so that there is one list of what a service may do.
  unit =
    name: service:
    pkgs.runCommand "${name}-unit" { } ''
      mkdir -p $out/lib/systemd/system
      substitute ${../deploy/systemd + "/${name}.service"} $out/lib/systemd/system/${name}.service \
        --replace-fail /usr/local/bin/${service.crate} ${cfg.${name}.package}/bin/${service.crate}
    '';
  # A string, a number or a list of such is written in TOML as it is in JSON.
  toml =
    keys:
    lib.concatStrings (lib.mapAttrsToList (key: value: "${key} = ${builtins.toJSON value}\n") keys);
in
{
  options.services.formation = lib.mapAttrs (name: service: {
    enable = mkEnableOption service.description;
    package = mkOption {
      type = types.package;
      default = self.packages.${pkgs.stdenv.hostPlatform.system}.${service.crate};
      defaultText = "the flake's own";
      description = "What has the program ${service.crate}.";
    };
    settings = mkOption {
      type = types.attrsOf (
        types.oneOf [
          types.str
          types.int
          (types.listOf types.str)
        ]
      );
      default = { };
      description = "Keys of /etc/formation/${name}/config.toml; `${service.crate} --help` tells which there are.";
    };
    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Whether others reach the ports that are for everyone.";
    };
  }) services;

  config = lib.mkIf (enabled != { }) {
    users.users.formation = {
      isSystemUser = true;
      group = "formation";
    };
    users.groups.formation = { };
    systemd.packages = lib.mapAttrsToList unit enabled;
    # A unit that comes as a file is not started unless it is said here.
    systemd.services = lib.mapAttrs (_: service: {
      wantedBy = [ "multi-user.target" ];
      path = map (name: pkgs.${name}) service.packages ++ lib.optional service.guest pkgs.e2fsprogs;
    }) enabled;
    environment.etc = lib.mapAttrs' (
      name: service:
      lib.nameValuePair "formation/${name}/config.toml" {
        text = toml (
          lib.optionalAttrs service.guest {
            guest_dir = "${self.packages.${pkgs.stdenv.hostPlatform.system}.guest}";
          }
          // cfg.${name}.settings
        );
      }
    ) enabled;
    networking.firewall =
      let
        open =
          protocol:
          lib.unique (
            lib.concatLists (
              lib.mapAttrsToList (
                name: service:
                lib.optionals cfg.${name}.openFirewall (
                  map (port: port.port) (
                    lib.filter (port: port.protocol == protocol && port.open == "everyone") service.ports
                  )
                )
              ) enabled
            )
          );
      in
      {
        allowedTCPPorts = open "tcp";
        allowedUDPPorts = open "udp";
      };
  };
}
