#!/bin/sh
# The page is held against axe-core, which only npm carries. Fetches it where npm is; else says what to do, and that
# test is skipped with the same reason.
AXE=axe-core@4.14.1
if [ -f build/axe/package/axe.min.js ]; then exit 0; fi
if command -v npm >/dev/null; then
  echo "fetching $AXE for the accessibility test"
  mkdir -p build/axe
  (cd build/axe && npm pack --silent "$AXE" >/dev/null && tar -xzf axe-core-*.tgz) && exit 0
fi
echo "no axe-core: the accessibility test will be skipped; it needs npm: npm pack $AXE, unpacked into build/axe"
