#!/bin/bash
# start.sh [none|dbd]: a SLURM cluster of two nodes on this host, all on loopback, as root and without systemd.
# CLUSTER: its folder. dbd: with accounting in a MariaDB of its own. Stop it with stop.sh.
set -euo pipefail
CLUSTER=${CLUSTER:?the folder of the cluster}; ACCOUNTING=${1:-none}; HOST=$(hostname -s)
HERE=$(cd "$(dirname "$0")" && pwd)
PORT=${PORT:-16817}
mkdir -p "$CLUSTER"/{bin,etc,run,log,state,spool/n1,spool/n2}
chmod 755 "$CLUSTER" "$CLUSTER/run" "$CLUSTER/etc"
[ -s "$CLUSTER/etc/munge.key" ] || { dd if=/dev/urandom of="$CLUSTER/etc/munge.key" bs=128 count=1 2>/dev/null; chmod 400 "$CLUSTER/etc/munge.key"; }
if [ "$ACCOUNTING" = dbd ]; then
  STORAGE="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 2))
AccountingStoragePass=$CLUSTER/run/munge.sock
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations"
else
  STORAGE="AccountingStorageType=accounting_storage/none"
fi
# No cgroups to own: processes are tracked by /proc, tasks are not bound.
cat > "$CLUSTER/etc/slurm.conf" <<CONF
ClusterName=lab
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$CLUSTER/run/munge.sock
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$CLUSTER/state
SlurmdSpoolDir=$CLUSTER/spool/%n
SlurmctldPidFile=$CLUSTER/run/slurmctld.pid
SlurmdPidFile=$CLUSTER/run/slurmd.%n.pid
SlurmctldLogFile=$CLUSTER/log/slurmctld.log
SlurmdLogFile=$CLUSTER/log/slurmd.%n.log
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,batch_sched_delay=0,bf_interval=2
PriorityType=priority/basic
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=300
SlurmctldTimeout=10
SlurmdTimeout=${NODE_TIMEOUT_S:-4}
InactiveLimit=0
KillWait=1
CompleteWait=0
MessageTimeout=10
Waittime=0
JobRequeue=1
MaxArraySize=1001
PropagateResourceLimits=NONE
GresTypes=gpu
$STORAGE
NodeName=DEFAULT CPUs=4 Boards=1 SocketsPerBoard=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=12000 Gres=gpu:2 State=UNKNOWN
NodeName=n1 NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 4))
NodeName=n2 NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 5))
PartitionName=cpu Nodes=n1,n2 Default=YES MaxTime=120 State=UP DefMemPerCPU=500
PartitionName=other Nodes=n2 MaxTime=120 State=UP DefMemPerCPU=500
PartitionName=gpu Nodes=n1,n2 MaxTime=120 State=UP DefMemPerCPU=500
CONF
# SLURM 22.05 drops a gpu record without File=, and File must be a character device: clones of /dev/null.
for i in 0 1; do [ -c "$CLUSTER/run/fakegpu$i" ] || mknod "$CLUSTER/run/fakegpu$i" c 1 3; done
echo "NodeName=n[1-2] Name=gpu File=$CLUSTER/run/fakegpu[0-1]" > "$CLUSTER/etc/gres.conf"
# The plugin clears SLURM_* before a job's srun, which then looks in /etc/slurm.
printf '#!/bin/sh\nexport SLURM_CONF=%s/etc/slurm.conf\nexec /usr/bin/srun "$@"\n' "$CLUSTER" > "$CLUSTER/bin/srun"
chmod 755 "$CLUSTER/bin/srun"
export SLURM_CONF=$CLUSTER/etc/slurm.conf
/usr/sbin/munged --force --socket="$CLUSTER/run/munge.sock" --key-file="$CLUSTER/etc/munge.key" \
  --log-file="$CLUSTER/log/munged.log" --pid-file="$CLUSTER/run/munged.pid" --seed-file="$CLUSTER/etc/munged.seed"
if [ "$ACCOUNTING" = dbd ]; then . "$HERE/accounting.sh"; fi
/usr/sbin/slurmctld -f "$SLURM_CONF"
for n in n1 n2; do /usr/sbin/slurmd -N $n -f "$SLURM_CONF"; done
for _ in $(seq 150); do
  [ "$(sinfo -h -N -p cpu -t idle -o %N 2>/dev/null | sort -u | wc -l)" = 2 ] && exit 0
  sleep 0.1
done
echo "the nodes did not come up; see $CLUSTER/log" >&2
exit 1
