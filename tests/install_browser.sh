#!/bin/sh
# The browser tests open the report in Debian's Chromium. Installs it where that is possible; else says what to do,
# and those tests are skipped with the same reason.
if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then exit 0; fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing chromium and chromium-driver for the browser tests"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver; } >/dev/null && exit 0
fi
echo "no chromium and chromedriver: the browser tests will be skipped; on Debian: apt-get install chromium chromium-driver"
