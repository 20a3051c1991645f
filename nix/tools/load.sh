# load [docker|podman] [--dry-run]: all images of this system into the engine that is named, or that there is.
engine="" dry=""
for argument in "$@"; do
  case "$argument" in
    --dry-run) dry=1 ;;
    docker | podman) engine="$argument" ;;
    *) echo "usage: load [docker|podman] [--dry-run]" >&2; exit 2 ;;
  esac
done
for candidate in podman docker; do
  if [ -z "$engine" ] && command -v "$candidate" > /dev/null; then
    engine="$candidate"
  fi
done
if [ -z "$engine" ]; then
  echo "load: neither podman nor docker is installed" >&2
  exit 1
fi
while read -r repository variant path; do
  if [ -n "$dry" ]; then
    echo "would load $repository:$version${variant#.} from $path into $engine"
  else
    # Older engines take a compressed archive for a broken one.
    gzip --decompress --stdout "$path" | "$engine" load
  fi
done < "$images"
