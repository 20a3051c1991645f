# scan [FLAG]...: each image's bill of materials, read by a scanner; flags are the scanner's, such as --fail-on high.
failed=0
while read -r repository variant path; do
  echo "== $repository${variant#.}"
  grype "sbom:$path" "$@" || failed=1
done < "$images"
exit "$failed"
