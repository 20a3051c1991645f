"""Whether an image keeps what services.nix says of it.

    contract.py EXPECTED.json LAYOUT [BASE_LAYOUT]

Prints the image's sizes as JSON, or every promise that is broken, and fails then.
"""

import gzip
import json
import os
import re
import sys
import tarfile

# A compiler, a linker or headers: what builds, and what only a build reads.
BUILDS = re.compile(
    r"^(gcc|clang|llvm|rustc|cargo|binutils|gnumake|cmake|meson|ninja|pkg-config|protoc)(-wrapper)?-\d[\d.]*$"
    r"|-(dev|source|src)$|^source$"
)

# The latest time that stdenv gives to files, 1980: a build's own time would be later.
CONSTANT = 315532800


def blob(layout, descriptor):
    return os.path.join(layout, "blobs/sha256", descriptor["digest"].removeprefix("sha256:"))


def load(layout):
    with open(f"{layout}/index.json") as file:
        [entry] = [entry for entry in json.load(file)["manifests"] if "platform" in entry]
    with open(blob(layout, entry)) as file:
        manifest = json.load(file)
    with open(blob(layout, manifest["config"])) as file:
        return manifest, json.load(file)


def files(layout, manifest):
    """What a container sees: the later layer wins."""
    seen = {}
    for layer in manifest["layers"]:
        with gzip.open(blob(layout, layer)) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for entry in tar:
                seen["/" + entry.name.removeprefix("./").strip("/")] = entry
    return seen


def resolve(seen, path):
    """The entry that a path leads to through links, also those on its way."""
    for _ in range(40):
        at = ""
        for part in path.strip("/").split("/"):
            at = f"{at}/{part}"
            entry = seen.get(at)
            if entry is not None and entry.issym():
                rest = path[len(at) :]
                path = os.path.normpath(os.path.join(os.path.dirname(at), entry.linkname)) + rest
                break
        else:
            return seen.get(path.rstrip("/"))
    return None


def main():
    with open(sys.argv[1]) as file:
        expected = json.load(file)
    layout, base = sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None
    manifest, image = load(layout)
    config, seen = image["config"], files(layout, manifest)
    broken = []

    def promise(kept, text):
        if not kept:
            broken.append(text)

    for key, wanted in expected["config"].items():
        promise(config.get(key) == wanted, f"{key} is {config.get(key)!r} and not {wanted!r}")
    for path in expected["executables"]:
        entry = resolve(seen, path)
        promise(entry is not None and entry.isfile() and entry.mode & 0o111 == 0o111, f"{path} cannot be executed")
    for path in expected["files"]:
        promise(resolve(seen, path) is not None, f"{path} is not there")
    for path, owner in expected["directories"].items():
        entry = seen.get(path)
        promise(entry is not None and entry.isdir(), f"{path} is no directory")
        promise(entry is None or entry.uid == owner, f"{path} does not belong to {owner}")
    tmp = seen.get("/tmp")
    promise(tmp is not None and tmp.mode & 0o7777 == 0o1777, "/tmp is not for everyone")
    for label in ["title", "description", "version", "revision", "source", "licenses", "created"]:
        promise(config["Labels"].get(f"org.opencontainers.image.{label}"), f"label {label} is missing")
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)"
    promise(re.fullmatch(stamp, image["created"]), f"created is {image['created']!r}")

    for path, entry in seen.items():
        promise(not (entry.isfile() and entry.mode & 0o6000), f"{path} is setuid or setgid")
        promise(entry.mtime <= CONSTANT, f"{path} has time {entry.mtime}, which would change its layer")
    store = {path.split("/")[3].split("-", 1)[1] for path in seen if path.startswith("/nix/store/")}
    for name in sorted(store):
        promise(not BUILDS.search(name), f"{name} is there, which only a build needs")

    sizes = {"total": sum(layer["size"] for layer in manifest["layers"]), "layers": len(manifest["layers"])}
    sizes["unique"] = sizes["total"]
    if base:
        shared, _ = load(base)
        count = len(shared["layers"])
        promise(manifest["layers"][:count] == shared["layers"], "the base's layers are not the first ones")
        sizes["unique"] = sum(layer["size"] for layer in manifest["layers"][count:])
        again = [path for path in names(layout, manifest["layers"][count:]) & names(layout, shared["layers"])]
        promise(not again, f"in the base already: {again[:3]}")
    for which, most in expected["budget"].items():
        promise(sizes[which] <= most << 20, f"{which} is {sizes[which] / (1 << 20):.1f} MiB, the budget is {most} MiB")
    if broken:
        sys.exit("\n".join([f"{config['Labels'].get('org.opencontainers.image.title')}:", *broken]))
    print(json.dumps(sizes | {"base": bool(base)}, sort_keys=True))


def names(layout, layers):
    """The store paths in some layers."""
    found = {path for path in files(layout, {"layers": layers}) if path.startswith("/nix/store/")}
    return {"/".join(path.split("/")[:4]) for path in found}


main()
