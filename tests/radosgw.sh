#!/usr/bin/env bash
# Ceph's S3 service on loopback, in memory, for the tests of buckets. It ends with Ctrl-C.
#
#   apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-mgr ceph-common
#   bash tests/radosgw.sh                                              # in one terminal
#   POLLER_TEST_S3=http://127.0.0.1:7480 pytest -k bucket tests/       # in another one
set -euo pipefail

at=$(mktemp -d)
export CEPH_CONF=$at/ceph.conf
end() {
    for file in "$at"/*.pid; do kill "$(cat "$file")" 2>/dev/null || true; done
    sleep 1
    rm -rf "$at"
}
trap end EXIT
mkdir "$at"/{mon,osd,mgr,rgw}
fsid=$(uuidgen)

cat >"$CEPH_CONF" <<EOF
[global]
fsid = $fsid
mon host = v2:127.0.0.1:13300
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = $at/keyring
run dir = $at
admin socket = $at/\$name.asok
log file = $at/\$name.log
mon data = $at/mon
mgr data = $at/mgr
osd data = $at/osd
osd objectstore = memstore
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
memstore device bytes = 2147483648
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:7480
rgw data = $at/rgw
EOF

key() { ceph-authtool "$at/keyring" --gen-key -n "$@" >/dev/null; }
ceph-authtool --create-keyring "$at/keyring" >/dev/null
key mon. --cap mon 'allow *'
key client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
key mgr.a --cap mon 'allow profile mgr' --cap osd 'allow *'
key osd.0 --cap mon 'allow profile osd' --cap osd 'allow *' --cap mgr 'allow profile osd'
key client.rgw.a --cap mon 'allow rw' --cap osd 'allow rwx' --cap mgr 'allow rw'

monmaptool --create --addv a '[v2:127.0.0.1:13300]' --fsid "$fsid" "$at/monmap" >/dev/null
ceph-mon --mkfs -i a --monmap "$at/monmap" --keyring "$at/keyring"
ceph-mon -i a --pid-file "$at/mon.pid"
for name in mgr.a osd.0 client.rgw.a; do ceph auth add "$name" -i "$at/keyring" 2>/dev/null; done
ceph-mgr -i a --pid-file "$at/mgr.pid"
osd=$(uuidgen)
ceph osd new "$osd" >/dev/null
ceph-osd -i 0 --mkfs --osd-uuid "$osd" 2>/dev/null
ceph-osd -i 0 --pid-file "$at/osd.pid" >/dev/null 2>&1
radosgw -n client.rgw.a --pid-file "$at/rgw.pid"
until curl -s -o /dev/null http://127.0.0.1:7480; do sleep 0.5; done
radosgw-admin user create --uid tests --display-name tests --access-key test --secret-key test >/dev/null
echo "radosgw is at http://127.0.0.1:7480, key test, secret test"
sleep infinity
