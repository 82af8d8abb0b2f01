# Sourced by start.sh: a MariaDB that listens on a socket only, and slurmdbd with one account.
mkdir -p "$CLUSTER/mysql"
if [ ! -d "$CLUSTER/mysql/mysql" ]; then
  mariadb-install-db --no-defaults --user=root --datadir="$CLUSTER/mysql" --auth-root-authentication-method=normal \
    --skip-test-db > "$CLUSTER/log/mysql_install.log" 2>&1
fi
/usr/sbin/mariadbd --no-defaults --user=root --datadir="$CLUSTER/mysql" --socket="$CLUSTER/run/mysql.sock" \
  --pid-file="$CLUSTER/run/mariadbd.pid" --skip-networking --innodb-buffer-pool-size=64M \
  --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900 --log-error="$CLUSTER/log/mariadbd.log" \
  > /dev/null 2>&1 < /dev/null &
for _ in $(seq 100); do
  mariadb-admin --no-defaults -S "$CLUSTER/run/mysql.sock" -u root ping > /dev/null 2>&1 && break
  sleep 0.1
done
cat > "$CLUSTER/etc/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$CLUSTER/run/munge.sock
DbdHost=$HOST
DbdAddr=127.0.0.1
DbdPort=$((PORT + 2))
SlurmUser=root
PidFile=$CLUSTER/run/slurmdbd.pid
LogFile=$CLUSTER/log/slurmdbd.log
CommunicationParameters=NoInAddrAny
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
CONF
chmod 600 "$CLUSTER/etc/slurmdbd.conf"
MYSQL_UNIX_PORT="$CLUSTER/run/mysql.sock" /usr/sbin/slurmdbd
for _ in $(seq 200); do sacctmgr -n -i show cluster > /dev/null 2>&1 && break; sleep 0.1; done
sacctmgr -n show cluster format=cluster | grep -qw lab || sacctmgr -i add cluster lab > /dev/null
sacctmgr -n show account lab format=account | grep -qw lab || {
  sacctmgr -i add account lab Description=lab Organization=lab > /dev/null
  sacctmgr -i add user "$(id -un)" Account=lab > /dev/null
  sacctmgr -i modify user "$(id -un)" set DefaultAccount=lab > /dev/null
}
