# Functions of the maintainer scripts of the Debian package and of the rpm. scripts/package copies the functions into
# these scripts.

note() { echo "pyflannel: $*"; }

systemd_runs() { [ -d /run/systemd/system ]; }

# Return true if the unit of this package is in force. An original may have a unit of the same name in /etc.
systemd_uses_our_unit() {
    case $(systemctl show --property=FragmentPath --value flanneld.service) in
        /usr/lib/* | /lib/*) ;;
        *) return 1 ;;
    esac
}

# Print process ID and program of each flanneld in this network namespace: "original PID FILE" or "ours PID -".
# The executable of the original is named flanneld. The executable of pyflannel is Python, which runs a script flanneld.
running_daemons() {
    for process in /proc/[0-9]*; do
        [ "$(readlink "$process/ns/net")" = "$(readlink /proc/self/ns/net)" ] || continue
        program=$(readlink "$process/exe") || continue
        program=${program% (deleted)}
        case "$program $(cat "$process/comm" 2>/dev/null)" in
            */flanneld\ *) echo "original ${process#/proc/} $program" ;;
            */python*\ flanneld) echo "ours ${process#/proc/} -" ;;
        esac
    done
}

after_installation() { # FORMER_VERSION, empty at the first installation
    daemons=$(running_daemons)
    if command -v systemd-sysusers >/dev/null; then
        systemd-sysusers flannel.conf
    else
        note "systemd-sysusers is missing, so the forwarder has no user of its own"
    fi
    if systemd_runs; then
        systemctl daemon-reload
        # The data path continues to work while flanneld restarts. try-restart does not start a stopped flanneld.
        if [ -n "$1" ] && systemd_uses_our_unit; then
            systemctl try-restart flanneld.service || note "flanneld did not restart: see 'systemctl status flanneld'"
        fi
        start="set FLANNELD_ETCD_ENDPOINTS in /etc/default/flanneld, then: systemctl enable --now flanneld"
    else
        echo "$daemons" | while read -r kind pid _; do
            [ "$kind" != ours ] || note "flanneld, pid $pid, runs the former version until you restart it"
        done
        note "systemd does not run here, so the package starts and restarts nothing"
        start="start the daemon with: flanneld --etcd-endpoints=http://ETCD:2379"
    fi
    if [ -z "$1" ]; then
        note "$start"
    fi
    echo "$daemons" | while read -r kind pid program; do
        [ "$kind" = original ] || continue
        note "an original flannel runs (pid $pid, $program) and was not changed"
        note "to replace it, see 'Replace the original flannel on a host' in the guides"
    done
    if [ -e /etc/systemd/system/flanneld.service ]; then
        note "/etc/systemd/system/flanneld.service overrides the unit of this package; remove it to use this package"
    fi
    for directory in /usr/local/sbin /usr/local/bin; do
        if [ -e "$directory/flanneld" ]; then
            note "$directory/flanneld exists too: a shell starts that one, the unit of this package /usr/bin/flanneld"
        fi
    done
}

before_removal() {
    if systemd_runs && systemd_uses_our_unit; then
        systemctl disable --now flanneld.service || true
    fi
    # After the removal of the package, no program could remove the devices, routes and rules, so cleanup runs now.
    if [ -r /etc/default/flanneld ]; then
        set -a
        . /etc/default/flanneld
        set +a
    fi
    flannelctl cleanup || note "flannelctl cleanup failed; devices, routes or rules of flannel may remain"
}

after_removal() {
    ! systemd_runs || systemctl daemon-reload || true
}

remove_state() {
    rm -rf /var/lib/flannel
    if running_daemons | grep -q .; then
        note "another flanneld runs, so /run/flannel is kept"
    else
        rm -rf /run/flannel
    fi
}
