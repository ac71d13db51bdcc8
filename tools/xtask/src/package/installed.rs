//! Installs the Debian package in a copy of this system and uses it: as root, in namespaces of its own.
//!
//! The copy is an overlay whose upper layer is in memory; nothing of this system changes.

use crate::step::{Tally, root};
use std::path::Path;
use std::process::Command;

/// Makes the overlay and runs the second script in it.
const OUTSIDE: &str = r#"
set -eu
if [ "$(id -u)" != 0 ]; then echo "this test mounts and installs: run it as root"; exit 1; fi
exec unshare --mount --net --pid --fork --propagation private sh -eu -c '
    mount -t tmpfs tmpfs /mnt
    mkdir /mnt/upper /mnt/work /mnt/system
    mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/system
    mount -t proc proc /mnt/system/proc
    mount --rbind /dev /mnt/system/dev
    mount --rbind /sys /mnt/system/sys
    mount -t tmpfs tmpfs /mnt/system/tmp
    mount -t tmpfs tmpfs /mnt/system/run
    ip link set lo up
    cp "$DEB" /mnt/system/tmp/blockhaul.deb
    exec chroot /mnt/system env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive sh -eux -c "$INSIDE"
'
"#;

/// Installs, uses, upgrades, removes and purges the package.
const INSIDE: &str = r#"
cd /tmp
dpkg --install --path-include="/usr/share/*" blockhaul.deb
for program in blockhaul taskd copy-bench; do $program --version; done
dpkg --verify blockhaul
test "$(stat --format=%U:%a /var/lib/blockhaul)" = blockhaul:700
test "$(getent passwd blockhaul | cut -d: -f6)" = /var/lib/blockhaul
man --where blockhaul-copy blockhaul-schedule-add
man --where 8 taskd
bash -c '. /usr/share/bash-completion/completions/blockhaul; . /usr/share/bash-completion/completions/taskd; complete -p blockhaul taskd'
systemd-analyze verify --man=no /usr/lib/systemd/system/taskd.service
test ! -e /etc/systemd/system/multi-user.target.wants/taskd.service

head -c 3000000 /dev/urandom > a
blockhaul copy -q --verify a b
cmp a b

setpriv --reuid=blockhaul --regid=blockhaul --clear-groups env STATE_DIRECTORY=/var/lib/blockhaul \
    taskd --config /etc/blockhaul/taskd.toml > log 2>&1 &
blockhaul submit noop --id installed --wait
blockhaul get installed --json | grep '"schema":1,"event":"task"'
kill $!
wait $!

echo 'slots = 2' >> /etc/blockhaul/taskd.toml
dpkg --install --force-confdef --path-include="/usr/share/*" blockhaul.deb
grep 'slots = 2' /etc/blockhaul/taskd.toml
dpkg --remove blockhaul
test ! -e /usr/bin/blockhaul
test -e /etc/blockhaul/taskd.toml
dpkg --purge blockhaul
test ! -e /etc/blockhaul
test -d /var/lib/blockhaul
"#;

/// Reports errors of the package against Debian's policy; installs lintian if it is missing.
const POLICY: &str = r#"
command -v lintian > /dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends lintian; } || exit
exec lintian --allow-root --fail-on error "$DEB"
"#;

/// Tests the package.
pub(super) fn test(tally: &mut Tally, deb: &Path) {
    for (title, script) in [("package: policy", POLICY), ("package: installed and used", OUTSIDE)] {
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(root()).env("DEB", deb).env("INSIDE", INSIDE);
        tally.run(title, &mut command);
    }
}
