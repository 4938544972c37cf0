#!/bin/sh
# Two machines made of one: network namespaces with their own names and addresses, for trying commands of clusters.
#
#   sudo benchmarks/two_nodes.sh up              # node1 and node2, which reach each other and nothing else
#   sudo benchmarks/two_nodes.sh on 1 COMMAND    # runs a command on node1
#   sudo benchmarks/two_nodes.sh ray             # a Ray cluster of both; its address is node1:6379
#   sudo benchmarks/two_nodes.sh slurm           # a SLURM cluster of both (needs slurmctld, slurmd and munge)
#   sudo benchmarks/two_nodes.sh down
#
# Both see the same files and share the processors of this machine, so that what is tried here is whether commands work,
# not how fast they are.
set -eu
place=${TMPDIR:-/tmp}/prune-two-nodes
cores=$(nproc)
SLURM_CONF=$place/slurm.conf
export SLURM_CONF RAY_USAGE_STATS_ENABLED=0
# Nobody else reaches these nodes. A head would want a token of the others, if a file with one is there.
export RAY_AUTH_MODE=disabled

on() {
    node=node$1
    shift
    nsenter "--net=/run/netns/$node" unshare --uts --mount sh -c '
        hostname "$0"
        mount --bind "/etc/netns/$0/hosts" /etc/hosts
        exec "$@"' "$node" "$@"
}

up() {
    down
    ip link add prune-nodes type bridge
    ip addr add 10.77.0.254/24 dev prune-nodes
    ip link set prune-nodes up
    for number in 1 2; do
        ip netns add node$number
        ip link add prune-node$number type veth peer name eth0 netns node$number
        ip link set prune-node$number master prune-nodes up
        ip -n node$number addr add 10.77.0.$number/24 dev eth0
        ip -n node$number link set eth0 up
        ip -n node$number link set lo up
        mkdir -p /etc/netns/node$number
        printf '127.0.0.1 localhost\n10.77.0.1 node1\n10.77.0.2 node2\n' >/etc/netns/node$number/hosts
    done
}

ray_cluster() {
    on 1 ray start --head --node-ip-address 10.77.0.1 --port 6379 --num-cpus "$cores" --include-dashboard false
    on 2 ray start --address node1:6379 --node-ip-address 10.77.0.2 --num-cpus "$cores"
}

slurm_cluster() {
    mkdir -p "$place/state" "$place/spool-node1" "$place/spool-node2"
    cat >"$SLURM_CONF" <<CONF
ClusterName=two
SlurmctldHost=node1
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool-%n
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd-%n.pid
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
NodeName=node1 NodeAddr=10.77.0.1 CPUs=$cores
NodeName=node2 NodeAddr=10.77.0.2 CPUs=$cores
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
CONF
    printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$place/cgroup.conf"
    if ! pgrep -x munged >/dev/null; then
        mkdir -p /run/munge
        chown munge: /run/munge
        su -s /bin/sh munge -c munged
    fi
    on 1 slurmctld
    on 1 slurmd -N node1
    on 2 slurmd -N node2
    echo "export SLURM_CONF=$SLURM_CONF"
}

down() {
    for number in 1 2; do
        for signal in TERM KILL; do
            if ip netns pids node$number 2>/dev/null | grep -q .; then
                ip netns pids node$number | xargs kill -$signal 2>/dev/null || true
                sleep 2
            fi
        done
        ip netns del node$number 2>/dev/null || true
        ip link del prune-node$number 2>/dev/null || true
        rm -rf /etc/netns/node$number
    done
    ip link del prune-nodes 2>/dev/null || true
    rm -rf "$place"
}

case ${1:-} in
up) up ;;
on) shift && on "$@" ;;
ray) ray_cluster ;;
slurm) slurm_cluster ;;
down) down ;;
*) sed -n 's/^# \{0,1\}//p' "$0" | sed 1d && exit 2 ;;
esac
