"""What is in an image, as CycloneDX 1.6: its store paths, and the crates that its program is made of.

    sbom.py GRAPH.json Cargo.lock NEEDED.json CRATE NAME VERSION CREATED > NAME.cdx.json

GRAPH.json is what Nix writes for exportReferencesGraph. NEEDED.json says what each of our own crates is compiled with, as
the lock also names what only their tests are. CRATE is "-" for an image without a program.
"""

import json
import re
import sys
import tomllib
import uuid


def split(path):
    """Name and version of a store path: the version begins at the first dash before a digit."""
    name = path.split("/")[-1].split("-", 1)[1]
    found = re.match(r"(.+?)-(\d.*)$", name)
    return found.groups() if found else (name, "")


def store(graph):
    for node in sorted(graph, key=lambda node: node["path"]):
        name, version = split(node["path"])
        component = {
            "type": "library",
            "bom-ref": node["path"],
            "name": name,
            "purl": f"pkg:nix/{name}" + (f"@{version}" if version else ""),
            "properties": [
                {"name": "nix:path", "value": node["path"]},
                {"name": "nix:narHash", "value": node["narHash"]},
            ],
        }
        if version:
            component["version"] = version
        yield component, sorted(set(node["references"]) - {node["path"]})


def crates(lock, needed, root):
    packages = {}
    for package in lock["package"]:
        packages.setdefault(package["name"], {})[package["version"]] = package

    def find(text):
        # A version is said where there are several.
        name, *rest = text.split(" ")
        versions = packages[name]
        return versions[rest[0]] if rest else next(iter(versions.values()))

    def dependencies(package):
        names = package.get("dependencies", [])
        if "source" not in package:
            names = [name for name in names if name.split(" ")[0] in needed[package["name"]]]
        return [find(name) for name in names]

    def ref(package):
        return f"pkg:cargo/{package['name']}@{package['version']}"

    seen, todo = {}, [find(root)]
    while todo:
        package = todo.pop()
        if ref(package) in seen:
            continue
        seen[ref(package)] = package
        todo.extend(dependencies(package))
    for name in sorted(seen):
        package = seen[name]
        component = {
            "type": "library",
            "bom-ref": name,
            "name": package["name"],
            "version": package["version"],
            "purl": name,
        }
        if "checksum" in package:
            component["hashes"] = [{"alg": "SHA-256", "content": package["checksum"]}]
        yield component, sorted({ref(other) for other in dependencies(package)})


def main():
    graph_file, lock_file, needed_file, crate, name, version, created = sys.argv[1:]
    with open(graph_file) as file:
        found = list(store(json.load(file)))
    if crate != "-":
        with open(lock_file, "rb") as lock, open(needed_file) as needed:
            found += crates(tomllib.load(lock), json.load(needed), crate)
    content = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": created,
            "component": {"type": "container", "bom-ref": name, "name": name, "version": version},
        },
        "components": [component for component, _ in found],
        "dependencies": [{"ref": component["bom-ref"], "dependsOn": needs} for component, needs in found],
    }
    text = json.dumps(content, sort_keys=True)
    # The document's own name follows from what it says, so that the same image has the same one.
    content["serialNumber"] = uuid.uuid5(uuid.NAMESPACE_URL, text).urn
    print(json.dumps(content, sort_keys=True, indent=1))


main()
