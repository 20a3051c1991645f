"""An image out of dockerTools as an OCI layout, with the documents that belong to it.

A registry knows a layer by the digest of its compressed bytes. They are compressed here, once, so that a push can ask
whether the registry has them before it sends anything. Layers of the base are taken from the base's layout as they are.

    oci.py IMAGE.tar.gz OUT [--base LAYOUT] [--document MEDIA_TYPE FILE]...
"""

import argparse
import gzip
import hashlib
import json
import os
import tarfile

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
EMPTY = "application/vnd.oci.empty.v1+json"


def dump(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


class Layout:
    def __init__(self, path):
        self.path = path
        os.makedirs(f"{path}/blobs/sha256")
        self.write("oci-layout", dump({"imageLayoutVersion": "1.0.0"}))

    def write(self, name, content):
        with open(f"{self.path}/{name}", "wb") as file:
            file.write(content)

    def add(self, media_type, content):
        digest = hashlib.sha256(content).hexdigest()
        self.write(f"blobs/sha256/{digest}", content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    def compress(self, source):
        """The layer's descriptor and the digest of its bytes as they were."""
        plain, packed = hashlib.sha256(), hashlib.sha256()
        incoming = f"{self.path}/blobs/incoming"
        with open(incoming, "wb") as file:
            # No name and no time: equal layers give equal bytes.
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, compresslevel=9, mtime=0) as out:
                while block := source.read(1 << 20):
                    plain.update(block)
                    out.write(block)
        with open(incoming, "rb") as file:
            while block := file.read(1 << 20):
                packed.update(block)
        size = os.path.getsize(incoming)
        os.rename(incoming, f"{self.path}/blobs/sha256/{packed.hexdigest()}")
        descriptor = {"mediaType": LAYER, "digest": f"sha256:{packed.hexdigest()}", "size": size}
        return descriptor, f"sha256:{plain.hexdigest()}"

    def link(self, base, descriptor):
        name = "blobs/sha256/" + descriptor["digest"].removeprefix("sha256:")
        os.symlink(os.path.realpath(f"{base}/{name}"), f"{self.path}/{name}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("image")
    parser.add_argument("out")
    parser.add_argument("--base")
    parser.add_argument("--document", nargs=2, action="append", default=[])
    args = parser.parse_args()

    known = {}
    if args.base:
        with open(f"{args.base}/layers.json") as file:
            known = json.load(file)
    layout = Layout(args.out)
    layers = {}
    with tarfile.open(args.image) as image:
        [manifest] = json.load(image.extractfile("manifest.json"))
        config = image.extractfile(manifest["Config"]).read()
        parsed = json.loads(config)
        for name, diff_id in zip(manifest["Layers"], parsed["rootfs"]["diff_ids"], strict=True):
            if diff_id in layers:
                continue
            if diff_id in known:
                layers[diff_id] = known[diff_id]
                layout.link(args.base, known[diff_id])
                continue
            descriptor, found = layout.compress(image.extractfile(name))
            if found != diff_id:
                raise SystemExit(f"{name} has digest {found} and not {diff_id}")
            layers[diff_id] = descriptor

    labels = parsed["config"].get("Labels", {})
    annotations = {key: value for key, value in labels.items() if key.startswith("org.opencontainers.")}
    subject = layout.add(
        MANIFEST,
        dump(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": layout.add(CONFIG, config),
                "layers": [layers[diff_id] for diff_id in parsed["rootfs"]["diff_ids"]],
                "annotations": annotations,
            }
        ),
    )
    created = {"org.opencontainers.image.created": annotations["org.opencontainers.image.created"]}
    documents = []
    for media_type, path in args.document:
        with open(path, "rb") as file:
            content = layout.add(media_type, file.read())
        content["annotations"] = {"org.opencontainers.image.title": os.path.basename(path)}
        documents.append(
            layout.add(
                MANIFEST,
                dump(
                    {
                        "schemaVersion": 2,
                        "mediaType": MANIFEST,
                        "artifactType": media_type,
                        "config": layout.add(EMPTY, b"{}"),
                        "layers": [content],
                        "subject": subject,
                        "annotations": created,
                    }
                ),
            )
            | {"artifactType": media_type, "annotations": created}
        )

    platform = {"architecture": parsed["architecture"], "os": parsed["os"]}
    entries = [subject | {"platform": platform, "annotations": {"org.opencontainers.image.ref.name": "image"}}]
    if documents:
        # What a client that knows no referrers API looks for: an index under the tag that the subject's digest gives.
        referrers = layout.add(INDEX, dump({"schemaVersion": 2, "mediaType": INDEX, "manifests": documents}))
        entries.append(referrers | {"annotations": {"org.opencontainers.image.ref.name": "referrers"}})
    layout.write("index.json", dump({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}))
    layout.write("layers.json", dump(layers))


main()
