#!/bin/sh
# The telemetry tests run Debian's Prometheus and promtool. Installs them where that is possible; else says what to do,
# and those tests are skipped with the same reason.
if command -v prometheus >/dev/null && command -v promtool >/dev/null; then exit 0; fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing prometheus for the telemetry tests"
  # its service would start with the package
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d && made=1
  fi
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus; } >/dev/null
  [ -z "$made" ] || rm -f /usr/sbin/policy-rc.d
  if command -v prometheus >/dev/null; then exit 0; fi
fi
echo "no prometheus and promtool: the telemetry tests will be skipped; on Debian: apt-get install prometheus"
