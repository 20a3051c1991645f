# What a row of services.nix has, and what follows from a row.
{ lib }:
let
  inherit (lib)
    isAttrs
    isBool
    isInt
    isList
    isString
    all
    attrValues
    ;
  strings = value: isList value && all isString value;
  oneOf = values: value: lib.elem value values;

  # Each field with what it must be.
  port = {
    name = isString;
    port = value: isInt value && value > 0 && value < 65536;
    protocol = oneOf [
      "tcp"
      "udp"
    ];
    key = isString;
    open = oneOf [
      "everyone"
      "cluster"
    ];
  };
  row = {
    crate = isString;
    description = isString;
    script = value: isString value && builtins.match "run-[a-z0-9-]+\\.sh" value != null;
    runs = oneOf [
      "once"
      "each"
    ];
    network = oneOf [
      "own"
      "host"
    ];
    ports = value: isList value && value != [ ];
    probe = isString;
    user = oneOf [
      "formation"
      "root"
    ];
    capabilities = strings;
    devices = strings;
    volumes = strings;
    runtime = strings;
    configuration = isAttrs;
    environment = value: isAttrs value && all isString (attrValues value);
    needs = strings;
    packages = strings;
    files = value: isAttrs value && all isString (attrValues value);
    guest = isBool;
    memory_mib = isInt;
    unique_mib = isInt;
    slim_mib = isInt;
  };

  checked =
    where: fields: value:
    let
      fail = message: throw "nix/services.nix: ${where}: ${message}";
      missing = lib.filter (name: !value ? ${name}) (lib.attrNames fields);
      unknown = lib.filter (name: !fields ? ${name}) (lib.attrNames value);
      wrong = lib.filter (name: !fields.${name} value.${name}) (lib.attrNames fields);
    in
    if !isAttrs value then
      fail "not a set of fields"
    else if missing != [ ] then
      fail "field ${lib.head missing} is missing"
    else if unknown != [ ] then
      fail "unknown field ${lib.head unknown}"
    else if wrong != [ ] then
      fail "field ${lib.head wrong} has a value that it cannot have"
    else
      value;
in
{
  # The eight that Formation is planned to have. One without a row does not exist yet.
  planned = [
    "form-broker"
    "form-dns"
    "form-p2p"
    "form-pack-manager"
    "form-state"
    "formnet"
    "mock-server"
    "vmm-service"
  ];

  check =
    services:
    lib.mapAttrs (
      name: value:
      let
        service = checked name row value;
        ports = lib.imap0 (i: checked "${name}: ports[${toString i}]" port) service.ports;
        strangers = lib.filter (other: !services ? ${other}) service.needs;
      in
      if !lib.any (port: port.name == service.probe) ports then
        throw "nix/services.nix: ${name}: field probe names no port"
      else if strangers != [ ] then
        throw "nix/services.nix: ${name}: field needs names ${lib.head strangers}, which has no row"
      else
        service // { inherit name ports; }
    ) services;

  # The prefix of a service's variables: form-dns -> FORM_DNS_, vmm-service -> FORM_VMM_SERVICE_.
  prefix =
    name: "FORM_${lib.toUpper (lib.replaceStrings [ "-" ] [ "_" ] (lib.removePrefix "form-" name))}_";

  # Linux lets a user other than root have these only if it is told to.
  hasLowPort = service: lib.any (port: port.port < 1024) service.ports;
}
