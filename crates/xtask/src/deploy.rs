//! `cargo xtask deploy`: what is under `deploy/`, and the table in `docs/images.md`, out of `nix/services.nix`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::host::{say, write_if_changed};
use crate::table::{self, Network, Open, Port, Protocol, Runs, Service, Services, User};

const MADE: &str = "made from nix/services.nix by `cargo xtask deploy`; a change belongs there";
const DOCUMENT: &str = "docs/images.md";
const TABLE: [&str; 2] = ["<!-- services -->\n", "<!-- /services -->"];
/// The user and group `formation` of the images.
const ID: u32 = 65532;
/// Below it, only who is allowed to may listen.
const FIRST_FREE_PORT: u16 = 1024;

/// Writes all files anew; or, with `check`, only compares.
///
/// # Errors
/// If the table is bad; with `check`, if a file is another than the table gives.
pub(crate) fn deploy(check: bool) -> Result<()> {
    let version = version(&fs::read_to_string("Cargo.toml").context("cannot read Cargo.toml")?)?;
    let mut files = files(&table::read()?, &version)?;
    let document = fs::read_to_string(DOCUMENT).with_context(|| format!("cannot read {DOCUMENT}"))?;
    files.push((DOCUMENT.to_owned(), with_table(&document, &table::read()?)?));
    for (path, wanted) in files {
        let path = Path::new(&path);
        if check {
            let there = fs::read_to_string(path).unwrap_or_default();
            if there != wanted {
                bail!("{} is not what nix/services.nix gives; run: cargo xtask deploy", path.display());
            }
            continue;
        }
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        write_if_changed(path, wanted.as_bytes())?;
        say(path.display());
    }
    Ok(())
}

fn version(manifest: &str) -> Result<String> {
    let line = manifest.lines().find_map(|line| line.strip_prefix("version = "));
    Ok(line.context("Cargo.toml says no version")?.trim_matches('"').to_owned())
}

fn files(services: &Services, version: &str) -> Result<Vec<(String, String)>> {
    let mut files = vec![
        ("deploy/services.json".to_owned(), serde_json::to_string_pretty(services)? + "\n"),
        ("deploy/compose.yaml".to_owned(), compose(services, version)?),
        ("deploy/kubernetes/kustomization.yaml".to_owned(), kustomization(services, version)?),
        ("deploy/kubernetes/namespace.yaml".to_owned(), namespace()),
        ("deploy/systemd/formation.sysusers.conf".to_owned(), format!("# {MADE}\nu formation {ID} \"Formation\"\n")),
    ];
    for (name, service) in services {
        files.push((format!("deploy/kubernetes/{name}.yaml"), kubernetes(name, service)?));
        files.push((format!("deploy/systemd/{name}.service"), systemd(service)?));
    }
    Ok(files)
}

impl Service {
    fn has_low_port(&self) -> bool {
        self.ports.iter().any(|port| port.port < FIRST_FREE_PORT)
    }

    fn uid(&self) -> u32 {
        if self.user == User::Root { 0 } else { ID }
    }

    fn probe_port(&self) -> u16 {
        self.ports.iter().find(|port| port.name == self.probe).map_or(0, |port| port.port)
    }
}

impl Port {
    fn protocol(&self) -> &'static str {
        if self.protocol == Protocol::Udp { "udp" } else { "tcp" }
    }
}

/// `form-dns` and `state` → `FORM_DNS_STATE`, as form-service reads it.
fn variable(service: &str, key: &str) -> String {
    let name = service.strip_prefix("form-").unwrap_or(service);
    format!("FORM_{name}_{key}").replace('-', "_").to_uppercase()
}

/// `/var/lib/formation/state` → `state`.
fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn compose(services: &Services, version: &str) -> Result<String> {
    let mut out = format!("# {MADE}\n");
    out.push_str(
        "#\n# The cloud of one machine. Identities come first (docs/images.md): ./identities/SERVICE has ca.pem, cert.pem and\n\
         # key.pem, and belongs to the user that the service runs as. There is no password anywhere.\n\
         name: formation\n\nservices:\n",
    );
    let mut volumes = Vec::new();
    for (name, service) in services {
        writeln!(out, "  {name}:")?;
        writeln!(
            out,
            "    image: ${{FORMATION_REGISTRY:-localhost}}/formation/{name}:${{FORMATION_VERSION:-{version}}}"
        )?;
        let uid = service.uid();
        writeln!(out, "    user: \"{uid}:{uid}\"\n    read_only: true\n    restart: unless-stopped")?;
        // The machines' memory would count against it.
        if !service.guest {
            writeln!(out, "    mem_limit: {}m", service.memory_mib)?;
        }
        out.push_str("    cap_drop: [ALL]\n");
        if !service.capabilities.is_empty() {
            writeln!(out, "    cap_add: [{}]", service.capabilities.join(", "))?;
        }
        out.push_str("    security_opt: [\"no-new-privileges:true\"]\n");
        if !service.devices.is_empty() {
            writeln!(out, "    devices: [{}]", service.devices.join(", "))?;
        }
        let host = service.network == Network::Host;
        if host {
            out.push_str("    network_mode: host\n");
        } else {
            out.push_str("    networks: [formation]\n");
            if service.has_low_port() && service.user != User::Root {
                out.push_str("    sysctls:\n      net.ipv4.ip_unprivileged_port_start: 0\n");
            }
            out.push_str("    ports:\n");
            for port in &service.ports {
                let (number, protocol) = (port.port, port.protocol());
                writeln!(out, "      - \"${{FORMATION_ADDRESS:-127.0.0.1}}:{number}:{number}/{protocol}\"")?;
            }
        }
        let environment = service.environment.iter().map(|(key, value)| {
            // On the host's network, the others are where their ports are published.
            let value = if host { on_loopback(value, services) } else { value.clone() };
            (key.as_str(), value)
        });
        let public = service.configuration.contains_key("public_url");
        let public = public.then(|| ("public_url", format!("https://127.0.0.1:{}", service.probe_port())));
        let environment: Vec<_> = environment.chain(public).collect();
        if !environment.is_empty() {
            out.push_str("    environment:\n");
            for (key, value) in environment {
                writeln!(out, "      {}: \"{value}\"", variable(name, key))?;
            }
        }
        out.push_str("    volumes:\n");
        for path in &service.volumes {
            writeln!(out, "      - {name}-{}:{path}", last(path))?;
            volumes.push(format!("{name}-{}", last(path)));
        }
        writeln!(out, "      - {name}-log:/var/log/formation")?;
        volumes.push(format!("{name}-log"));
        writeln!(out, "      - ./identities/{name}:/etc/formation/{name}/tls:ro")?;
        let memory: Vec<&str> = ["/tmp"].into_iter().chain(service.runtime.iter().map(String::as_str)).collect();
        writeln!(out, "    tmpfs: [{}]", memory.join(", "))?;
        writeln!(out, "    healthcheck:\n      test: [\"CMD\", \"/usr/local/bin/{}\", \"--health\"]", service.krate)?;
        out.push_str("      interval: 10s\n      timeout: 5s\n      start_period: 20s\n      retries: 3\n");
        if !service.needs.is_empty() {
            out.push_str("    depends_on:\n");
            for other in &service.needs {
                writeln!(out, "      {other}:\n        condition: service_healthy")?;
            }
        }
        out.push('\n');
    }
    out.push_str("networks:\n  formation: {}\n\nvolumes:\n");
    for volume in volumes {
        writeln!(out, "  {volume}: {{}}")?;
    }
    Ok(out)
}

/// `https://form-state:3004` → `https://127.0.0.1:3004`, if form-state has a row.
fn on_loopback(value: &str, services: &Services) -> String {
    let found = services.keys().find(|name| value.contains(&format!("{name}:")));
    found.map_or_else(|| value.to_owned(), |name| value.replace(&format!("{name}:"), "127.0.0.1:"))
}

fn kustomization(services: &Services, version: &str) -> Result<String> {
    let mut out = format!(
        "# {MADE}\napiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: formation\n\
         labels:\n  - pairs:\n      app.kubernetes.io/part-of: formation\nresources:\n  - namespace.yaml\n"
    );
    for name in services.keys() {
        writeln!(out, "  - {name}.yaml")?;
    }
    out.push_str("images:\n");
    for name in services.keys() {
        writeln!(out, "  - name: formation/{name}\n    newTag: \"{version}\"")?;
    }
    Ok(out)
}

fn namespace() -> String {
    // vmm-service opens devices of its node, which only the privileged level lets through.
    format!(
        "# {MADE}\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: formation\n  labels:\n    \
         pod-security.kubernetes.io/enforce: privileged\n    pod-security.kubernetes.io/warn: restricted\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: nothing-unless-said\nspec:\n  \
         podSelector: {{}}\n  policyTypes: [Ingress]\n"
    )
}

fn kubernetes(name: &str, service: &Service) -> Result<String> {
    let mut out = format!("# {MADE}\n");
    let host = service.network == Network::Host;
    let each = service.runs == Runs::Each;
    let labels = format!("app.kubernetes.io/name: {name}");

    writeln!(
        out,
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  selector:\n    {labels}\n  ports:"
    )?;
    for port in &service.ports {
        let protocol = port.protocol().to_uppercase();
        writeln!(out, "    - name: {}\n      port: {}\n      protocol: {protocol}", port.name, port.port)?;
    }

    writeln!(out, "---\napiVersion: apps/v1\nkind: {}", if each { "DaemonSet" } else { "StatefulSet" })?;
    writeln!(out, "metadata:\n  name: {name}\nspec:")?;
    if !each {
        writeln!(out, "  serviceName: {name}\n  replicas: 1")?;
    }
    writeln!(out, "  selector:\n    matchLabels:\n      {labels}")?;
    writeln!(out, "  template:\n    metadata:\n      labels:\n        {labels}\n    spec:")?;
    // A service account's token would be of no use here. And a variable that Kubernetes makes of the Service
    // form-state, FORM_STATE_SERVICE_HOST, would be an unknown key of form-state's configuration.
    out.push_str("      automountServiceAccountToken: false\n      enableServiceLinks: false\n");
    if host {
        out.push_str("      hostNetwork: true\n      dnsPolicy: ClusterFirstWithHostNet\n");
    }
    out.push_str("      securityContext:\n        seccompProfile:\n          type: RuntimeDefault\n");
    if service.user != User::Root {
        writeln!(
            out,
            "        runAsNonRoot: true\n        runAsUser: {ID}\n        runAsGroup: {ID}\n        fsGroup: {ID}"
        )?;
        if service.has_low_port() {
            out.push_str(
                "        sysctls:\n          - name: net.ipv4.ip_unprivileged_port_start\n            value: \"0\"\n",
            );
        }
    }
    let image = format!("formation/{name}");
    if !each {
        // Kubernetes lets a group read what it mounts for a user, and a key that others than its owner can read is
        // refused: so the service's own user copies it.
        writeln!(out, "      initContainers:\n        - name: identity\n          image: {image}")?;
        out.push_str("          command: [/bin/sh, -euc, \"umask 077; cp /identity/*.pem /tls/\"]\n");
        restricted(&mut out, service)?;
        out.push_str("          volumeMounts:\n            - {name: identity, mountPath: /identity, readOnly: true}\n");
        out.push_str("            - {name: tls, mountPath: /tls}\n");
    }
    writeln!(out, "      containers:\n        - name: {name}\n          image: {image}")?;
    restricted(&mut out, service)?;
    if !service.environment.is_empty() || service.guest {
        out.push_str("          env:\n");
        for (key, value) in &service.environment {
            writeln!(out, "            - {{name: {}, value: \"{value}\"}}", variable(name, key))?;
        }
        if service.guest {
            let (node, address) = (variable(name, "node"), variable(name, "public_url"));
            writeln!(
                out,
                "            - name: {node}\n              valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}"
            )?;
            out.push_str(
                "            - name: HOST_IP\n              valueFrom: {fieldRef: {fieldPath: status.hostIP}}\n",
            );
            writeln!(out, "            - {{name: {address}, value: \"https://$(HOST_IP):{}\"}}", service.probe_port())?;
        }
    }
    out.push_str("          ports:\n");
    for port in &service.ports {
        let protocol = port.protocol().to_uppercase();
        write!(out, "            - {{name: {}, containerPort: {}, protocol: {protocol}", port.name, port.port)?;
        // Guests ask at their node.
        if each && !host && port.open == Open::Everyone {
            write!(out, ", hostPort: {}", port.port)?;
        }
        out.push_str("}\n");
    }
    for (probe, path, period) in
        [("startupProbe", "/healthz", 2), ("livenessProbe", "/healthz", 20), ("readinessProbe", "/readyz", 5)]
    {
        writeln!(
            out,
            "          {probe}:\n            httpGet: {{scheme: HTTPS, path: {path}, port: {}}}",
            service.probe
        )?;
        writeln!(
            out,
            "            periodSeconds: {period}\n            failureThreshold: {}",
            if period == 2 { 30 } else { 3 }
        )?;
    }
    out.push_str("          resources:\n            requests: {cpu: 50m, memory: 64Mi}\n");
    if !service.guest {
        writeln!(out, "            limits: {{memory: {}Mi}}", service.memory_mib)?;
    }
    out.push_str("          volumeMounts:\n            - {name: tmp, mountPath: /tmp}\n            - {name: log, mountPath: /var/log/formation}\n");
    writeln!(out, "            - {{name: tls, mountPath: /etc/formation/{name}/tls, readOnly: true}}")?;
    for path in &service.volumes {
        writeln!(out, "            - {{name: {}, mountPath: {path}}}", last(path))?;
    }
    for path in &service.runtime {
        writeln!(out, "            - {{name: {}, mountPath: {path}}}", last(path))?;
    }
    for device in &service.devices {
        writeln!(out, "            - {{name: {}, mountPath: {device}}}", last(device))?;
    }
    out.push_str("      volumes:\n        - {name: tmp, emptyDir: {}}\n        - {name: log, emptyDir: {}}\n");
    for path in &service.runtime {
        writeln!(out, "        - {{name: {}, emptyDir: {{medium: Memory}}}}", last(path))?;
    }
    if each {
        // A node's agent shows a certificate with the node's name, so it is the node that has it.
        writeln!(out, "        - {{name: tls, hostPath: {{path: /etc/formation/{name}/tls, type: Directory}}}}")?;
        for path in &service.volumes {
            writeln!(out, "        - {{name: {}, hostPath: {{path: {path}, type: DirectoryOrCreate}}}}", last(path))?;
        }
    } else {
        out.push_str("        - {name: tls, emptyDir: {medium: Memory}}\n");
        writeln!(out, "        - {{name: identity, secret: {{secretName: {name}-identity, defaultMode: 0440}}}}")?;
    }
    for device in &service.devices {
        writeln!(out, "        - {{name: {}, hostPath: {{path: {device}, type: CharDevice}}}}", last(device))?;
    }
    if !each && !service.volumes.is_empty() {
        out.push_str("  volumeClaimTemplates:\n");
        for path in &service.volumes {
            writeln!(
                out,
                "    - metadata: {{name: {}}}\n      spec:\n        accessModes: [ReadWriteOnce]",
                last(path)
            )?;
            out.push_str("        resources: {requests: {storage: 10Gi}}\n");
        }
    }

    writeln!(out, "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: {name}\nspec:")?;
    writeln!(out, "  podSelector:\n    matchLabels:\n      {labels}\n  policyTypes: [Ingress]\n  ingress:")?;
    for (open, from) in [(Open::Everyone, ""), (Open::Cluster, "    - from: [{podSelector: {}}]\n")] {
        let ports: Vec<_> = service.ports.iter().filter(|port| port.open == open).collect();
        if ports.is_empty() {
            continue;
        }
        out.push_str(from);
        out.push_str(if from.is_empty() { "    - ports:\n" } else { "      ports:\n" });
        for port in ports {
            writeln!(out, "        - {{port: {}, protocol: {}}}", port.name, port.protocol().to_uppercase())?;
        }
    }
    Ok(out)
}

/// The least that a container of this service needs.
fn restricted(out: &mut String, service: &Service) -> Result<()> {
    out.push_str("          securityContext:\n            readOnlyRootFilesystem: true\n");
    if service.devices.is_empty() {
        out.push_str(
            "            allowPrivilegeEscalation: false\n            capabilities:\n              drop: [ALL]\n",
        );
        if !service.capabilities.is_empty() {
            writeln!(out, "              add: [{}]", service.capabilities.join(", "))?;
        }
    } else {
        // Without a device plugin, Kubernetes gives a node's devices to nobody else.
        writeln!(out, "            privileged: true # for {}", service.devices.join(" and "))?;
    }
    Ok(())
}

fn systemd(service: &Service) -> Result<String> {
    let mut out = format!("# {MADE}\n[Unit]\nDescription={}\n", service.description);
    let needs: Vec<String> = service.needs.iter().map(|other| format!(" {other}.service")).collect();
    writeln!(out, "After=network-online.target{}\nWants=network-online.target", needs.concat())?;

    out.push_str("\n[Service]\nType=notify\nNotifyAccess=main\nRestart=on-failure\nRestartSec=1\n");
    writeln!(out, "ExecStart=/usr/local/bin/{}", service.krate)?;
    let state: Vec<_> = service.volumes.iter().filter_map(|path| path.strip_prefix("/var/lib/")).collect();
    if !state.is_empty() {
        writeln!(out, "StateDirectory={}\nStateDirectoryMode=0700", state.join(" "))?;
    }
    out.push_str("LogsDirectory=formation\n");
    let mut allowed: Vec<String> = service.capabilities.iter().map(|name| format!("CAP_{name}")).collect();
    if service.user != User::Root {
        out.push_str("User=formation\nGroup=formation\n");
        if service.has_low_port() {
            allowed.push("CAP_NET_BIND_SERVICE".to_owned());
            out.push_str("AmbientCapabilities=CAP_NET_BIND_SERVICE\n");
        }
    }
    if service.guest || !service.runtime.is_empty() {
        // What it has started outlives it.
        out.push_str("KillMode=process\n");
    }
    if !service.guest {
        // Of a guest, the memory is not the service's own.
        writeln!(out, "MemoryMax={}M", service.memory_mib)?;
    }
    let runtime: Vec<_> = service.runtime.iter().filter_map(|path| path.strip_prefix("/run/")).collect();
    if !runtime.is_empty() {
        writeln!(out, "RuntimeDirectory={}\nRuntimeDirectoryPreserve=yes", runtime.join(" "))?;
    }

    writeln!(out, "\nCapabilityBoundingSet={}\nNoNewPrivileges=yes", allowed.join(" "))?;
    if service.devices.is_empty() {
        out.push_str("PrivateDevices=yes\n");
    } else {
        out.push_str("DevicePolicy=closed\n");
        for device in &service.devices {
            writeln!(out, "DeviceAllow={device} rw")?;
        }
    }
    if !service.guest {
        // QEMU without KVM translates the guest's code, and runs what it wrote.
        out.push_str("MemoryDenyWriteExecute=yes\nRestrictRealtime=yes\n");
    }
    if service.runtime.is_empty() {
        // Who makes the machine's network turns on that it forwards, too.
        out.push_str("ProtectKernelTunables=yes\n");
    }
    out.push_str(
        "ProtectSystem=strict\nProtectHome=yes\nPrivateTmp=yes\nProtectClock=yes\nProtectControlGroups=yes\n\
         ProtectHostname=yes\nProtectKernelLogs=yes\nProtectKernelModules=yes\nProtectProc=invisible\n\
         LockPersonality=yes\nRestrictNamespaces=yes\nRestrictSUIDSGID=yes\nRemoveIPC=yes\nUMask=0077\n\
         RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK\nSystemCallArchitectures=native\n\
         SystemCallFilter=@system-service\nSystemCallErrorNumber=EPERM\n\n[Install]\nWantedBy=multi-user.target\n",
    );
    Ok(out)
}

/// `document` with the table of services anew.
fn with_table(document: &str, services: &Services) -> Result<String> {
    let [begin, end] = TABLE;
    let split = document.split_once(begin).and_then(|(head, rest)| Some((head, rest.split_once(end)?.1)));
    let (head, tail) = split.with_context(|| format!("{DOCUMENT} has no place for the table: {begin}{end}"))?;
    let mut out = format!("{head}{begin}| service | what it is | ports | user | capabilities | volumes |\n");
    out.push_str("| --- | --- | --- | --- | --- | --- |\n");
    for (name, service) in services {
        let ports: Vec<_> = service.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol())).collect();
        let user = if service.user == User::Root { "root" } else { "formation" };
        let or_none = |list: &[String]| if list.is_empty() { "-".to_owned() } else { list.join(", ") };
        let (capabilities, volumes) = (or_none(&service.capabilities), or_none(&service.volumes));
        writeln!(
            out,
            "| {name} | {} | {} | {user} | {capabilities} | {volumes} |",
            service.description,
            ports.join(", ")
        )?;
    }
    Ok(out + end + tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deployed_is_what_the_table_gives() {
        // Tests of a package run in its own directory.
        std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).unwrap();
        deploy(true).unwrap();
    }

    #[test]
    fn a_table_goes_between_its_marks_and_a_document_without_them_is_refused() {
        let made = with_table("a\n<!-- services -->\nold\n<!-- /services -->\nb", &Services::new()).unwrap();
        assert!(
            made.starts_with("a\n<!-- services -->\n| service |") && made.ends_with("<!-- /services -->\nb"),
            "{made}"
        );
        assert!(!made.contains("old"));
        assert!(with_table("a", &Services::new()).is_err());
    }

    #[test]
    fn a_variable_is_named_as_the_service_reads_it() {
        assert_eq!(variable("form-dns", "state"), "FORM_DNS_STATE");
        assert_eq!(variable("vmm-service", "pack_url"), "FORM_VMM_SERVICE_PACK_URL");
    }

    #[test]
    fn on_the_hosts_network_others_are_found_on_loopback() {
        let services = table::read_from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../nix/services.nix")).unwrap();
        assert_eq!(on_loopback("https://form-pack-manager:3003", &services), "https://127.0.0.1:3003");
        assert_eq!(on_loopback("elsewhere:1", &services), "elsewhere:1");
    }
}
