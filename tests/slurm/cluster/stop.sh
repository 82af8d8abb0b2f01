#!/bin/bash
# Ends the cluster in $CLUSTER by its pid files; a zombie counts as gone, for pid 1 may not reap.
CLUSTER=${CLUSTER:?the folder of the cluster}
alive() {
  [ -s "$1" ] && state=$(awk '/^State/{print $2}' "/proc/$(cat "$1")/status" 2>/dev/null) && [ -n "$state" ] && [ "$state" != Z ]
}
for name in slurmd.n1 slurmd.n2 slurmctld slurmdbd mariadbd munged; do
  file=$CLUSTER/run/$name.pid
  alive "$file" || continue
  pid=$(cat "$file")
  kill "$pid"
  for _ in $(seq 100); do alive "$file" || break; sleep 0.1; done
  alive "$file" && kill -9 "$pid"
  rm -f "$file"
done
exit 0
