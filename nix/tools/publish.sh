# publish REGISTRY [--latest] [--sign] [--dry-run] [--plain-http]
#
# First everything goes up under its digest, which nobody looks for by name; a tag is written only when all images and
# their documents are there. So a registry that refuses half-way is left without a new tag, and all tags move together.
registry="" latest="" sign="" dry="" tls=() http=()
for argument in "$@"; do
  case "$argument" in
    --latest) latest=1 ;;
    --sign) sign=1 ;;
    --dry-run) dry=1 ;;
    --plain-http)
      tls=(--dest-tls-verify=false)
      http=(--allow-http-registry)
      ;;
    -*) echo "publish: there is no flag $argument" >&2; exit 2 ;;
    *) registry="$argument" ;;
  esac
done
if [ -z "$registry" ]; then
  echo "usage: publish REGISTRY [--latest] [--sign] [--dry-run] [--plain-http]" >&2
  exit 2
fi

tags() {
  local minor="${version%.*}"
  set -- "${1#.}"
  printf '%s\n' "$version$1" "$minor$1" "${minor%%.*}$1"
  if [ -n "$latest" ]; then echo "latest$1"; fi
}

push() {
  if [ -n "$dry" ]; then
    echo "would push $2"
  else
    skopeo --insecure-policy copy --quiet --all --preserve-digests "${tls[@]}" "oci:$1" "docker://$2"
    echo "pushed $2"
  fi
}

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# One index for each image, with all architectures that there are layouts of.
cut -d ' ' -f 1,2 "$images" | sort -u > "$work/names"
while read -r repository variant; do
  index="$work/$repository$variant"
  mkdir -p "$index/blobs/sha256"
  entries="$index/entries"
  : > "$entries"
  while read -r one other layout; do
    if [ "$one $other" = "$repository $variant" ]; then
      cp -s "$layout"/blobs/sha256/* "$index/blobs/sha256/" 2> /dev/null || true
      cp "$layout/oci-layout" "$index/"
      jq -c '.manifests[] | select(.platform) | del(.annotations)' "$layout/index.json" >> "$entries"
    fi
  done < "$images"
  type=application/vnd.oci.image.index.v1+json
  jq -jcs --arg type "$type" '{schemaVersion: 2, mediaType: $type, manifests: .}' "$entries" > "$index/list"
  digest="$(sha256sum "$index/list" | cut -d ' ' -f 1)"
  size="$(stat -c %s "$index/list")"
  mv "$index/list" "$index/blobs/sha256/$digest"
  jq -nc --arg type "$type" --arg digest "sha256:$digest" --argjson size "$size" \
    '{schemaVersion: 2, mediaType: $type, manifests: [{mediaType: $type, digest: $digest, size: $size,
      annotations: {"org.opencontainers.image.ref.name": "index"}}]}' > "$index/index.json"
  echo "$repository $variant sha256:$digest" >> "$work/digests"
done < "$work/names"

while read -r repository variant digest; do
  push "$work/$repository$variant:index" "$registry/$repository@$digest"
  while read -r one other layout; do
    if [ "$one $other" = "$repository $variant" ]; then
      subject="$(jq -r '.manifests[] | select(.platform) | .digest' "$layout/index.json")"
      push "$layout:referrers" "$registry/$repository:${subject/:/-}"
    fi
  done < "$images"
  if [ -n "$sign" ]; then
    if [ -n "$dry" ]; then
      echo "would sign $registry/$repository@$digest"
    else
      cosign sign --yes --recursive "${http[@]}" "$registry/$repository@$digest"
    fi
  fi
done < "$work/digests"

while read -r repository variant digest; do
  tags "$variant" > "$work/tags"
  while read -r tag; do
    push "$work/$repository$variant:index" "$registry/$repository:$tag"
  done < "$work/tags"
done < "$work/digests"
