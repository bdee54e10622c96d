# Sourced by packages.sh: the lab's packages. Each is described once and built
# for both package managers by build.sh.
#
#   begin NAME VERSION       starts a package; $d is the directory of its files
#   field KEY VALUE          depends, provides, conflicts, replaces, recommends,
#                            rpm_provides (of the RPM alone): names, separated by commas, with versions as "NAME (>= V)";
#                            rpm_requires: as a spec file has them, for what a deb cannot say
#   script PHASE <<END       pre or post: a shell scriptlet
#   lua PHASE <<END          pretrans, pre or post: the RPM has this in Lua; the deb
#                            has `script` of the same phase
#   trigger DIR <<END        a shell scriptlet for when any package brings files in DIR
#   filetrigger DIR <<END    the same of the RPM alone, run as soon as a file is there
#   config PATH              a file of the administrator
#   ghost PATH               a file that the RPM owns and does not bring
#   attr PATH MODE CAPS      mode and file capabilities of the RPM ("-": none)
#   end [base]               done; base: installed in both roots, not in the repository
#   end_rpm                  done; there is no deb of it
# shellcheck shell=bash

# file PATH [TEXT]: a file of the package that is being described.
file() {
  mkdir -p "$d$(dirname "$1")"
  printf '%s\n' "${2:-$name $version}" >"$d$1"
}

program() {
  file "$1" "#!/bin/sh
echo $name $version"
  chmod 755 "$d$1"
}

simple() {
  begin "$1" "$2"
  program "/usr/bin/$1"
}

# kernel NAME VERSION RELEASE: a package with what a kernel's has.
kernel() {
  begin "$1" "$2"
  file "/usr/lib/modules/$3/vmlinuz" "the kernel $3"
  file "/usr/lib/modules/$3/modules.order" "kernel/lab.ko"
  file "/usr/lib/modules/$3/modules.builtin" ""
  file "/usr/lib/modules/$3/kernel/lab.ko" "a module"
}

fixtures() {
  # In the roots.
  simple lab-base 1.0; field provides lab-release; field rpm_provides "/bin/sh"; end base
  simple lab-tool 1.0; end base
  simple lab-editor 1.0; end base
  begin lab-settings 1.0; file /etc/lab-settings.conf old; config /etc/lab-settings.conf; end base

  kernel lab-kernel 1.0 6.0.0-lab; end base

  # Kernels: one that replaces that of the base, one beside it whose image lies in
  # /boot, and a module for the base's.
  kernel lab-kernel 2.0 7.0.0-lab; end
  kernel lab-kernel-boot 1.0 8.0.0-boot
  mkdir -p "$d/boot"
  mv "$d/usr/lib/modules/8.0.0-boot/vmlinuz" "$d/boot/vmlinuz-8.0.0-boot"
  script post <<'END'
test -e /boot/vmlinuz-8.0.0-boot
echo "made by a hook" >/boot/initrd.img-8.0.0-boot
END
  end
  begin lab-module 1.0; file /usr/lib/modules/6.0.0-lab/extra/lab.ko "a module"; end

  # Dependencies.
  simple lab-chain 1.0; field depends "lab-link (>= 2)"; end
  simple lab-link 2.1; field depends lab-anchor; end
  simple lab-anchor 1.0; end
  simple lab-sender 1.0; field depends lab-transport; end
  simple lab-postbird 1.0; field provides lab-transport; end
  simple lab-tool 2.0; end
  simple lab-modern 1.0; field depends "lab-tool (>= 2)"; end
  simple lab-foe 1.0; field conflicts lab-base; end
  simple lab-orphan 1.0; field depends lab-nowhere; end
  simple lab-vi 1.0; field conflicts lab-editor; field replaces lab-editor; field provides lab-editor; end
  simple lab-nice 1.0; field recommends lab-bonus; end
  simple lab-bonus 1.0; end

  simple lab-dated 1:0.9; end
  simple lab-dated 1.0; end
  simple lab-tilde 1.0~rc1; end
  simple lab-tilde 1.0; end

  # What only RPMs have: boolean dependencies, files that are required, versions
  # after a release, triggers in the middle of a transaction.
  simple lab-rich 1.0; field rpm_requires "(lab-nowhere or lab-anchor), (lab-bonus if lab-base), (lab-postbird if lab-nowhere)"; end_rpm
  simple lab-pathy 1.0; field rpm_requires /usr/bin/lab-anchor; end_rpm
  simple lab-caret 1.0; end_rpm
  simple lab-caret 1.0^git2; end_rpm
  begin lab-filetrigger 1.0
  file /usr/share/doc/lab-filetrigger "waits for files"
  filetrigger /usr/share/lab-triggers <<'END'
mkdir -p /usr/share/lab && ls /usr/share/lab-triggers >/usr/share/lab/filetriggered
END
  end_rpm

  # What packages put into a root.
  begin lab-settings 2.0; file /etc/lab-settings.conf new; config /etc/lab-settings.conf; end
  begin lab-local 1.0; program /usr/local/bin/lab-local; end
  begin lab-trigger 1.0
  file /usr/share/doc/lab-trigger "waits for files"
  trigger /usr/share/lab-triggers <<'END'
mkdir -p /usr/share/lab && ls /usr/share/lab-triggers >/usr/share/lab/triggered
END
  end
  begin lab-triggers 1.0; file /usr/share/lab-triggers/one one; end
  begin lab-tmpfiles 1.0
  file /usr/lib/tmpfiles.d/lab-tmpfiles.conf "d /var/lib/lab-tmpfiles 0700 root root -"
  mkdir -p "$d/var/lib/lab-tmpfiles"
  end
  begin lab-eraser 1.0
  file /usr/share/lab/eraser "erases a file of the base"
  script post <<'END'
rm /usr/bin/lab-editor
END
  end
  simple lab-scripts 1.0
  script pre <<'END'
mkdir -p /usr/share/lab && echo pre >/usr/share/lab/pre
END
  script post <<'END'
date >/usr/share/lab/when
test -e /usr/share/lab/pre && echo post >/usr/share/lab/post
END
  end
  simple lab-lua 1.0
  script post <<'END'
mkdir -p /usr/share/lab && echo lua >/usr/share/lab/lua
END
  lua pretrans <<'END'
posix.mkdir("/usr/share/lab")
assert(io.open("/usr/share/lab/pretrans", "w")):close()
END
  lua post <<'END'
posix.mkdir("/usr/share/lab")
local f = assert(io.open("/usr/share/lab/lua", "w"))
f:write("lua\n")
f:close()
END
  end
  begin lab-config 1.0; file /etc/lab.conf "default = yes"; config /etc/lab.conf; end
  begin lab-daemon 1.0
  file /usr/lib/sysusers.d/lab-daemon.conf 'u labd - "Lab daemon" /var/lib/labd /usr/sbin/nologin'
  file /usr/lib/systemd/system/lab-daemon.service "[Service]
ExecStart=/usr/bin/true"
  mkdir -p "$d/var/lib/labd" "$d/var/log/labd" "$d/var/cache/labd"
  file /var/lib/labd/seed "a file in /var"
  ln -s seed "$d/var/lib/labd/link"
  script post <<'END'
systemd-sysusers lab-daemon.conf
useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin lab-helper
mkdir -p /usr/share/lab /etc/systemd/system/multi-user.target.wants
echo mine >/usr/share/lab/owned
chown lab-helper:labd /usr/share/lab/owned
chown -R labd:labd /var/lib/labd
ln -sf /usr/lib/systemd/system/lab-daemon.service /etc/systemd/system/multi-user.target.wants/
echo started >/var/log/labd/log
echo cached >/var/cache/labd/cached
echo 0123456789abcdef0123456789abcdef >/etc/machine-id
END
  end
  # What stories about booted machines install.
  simple lab-service 1.0; field depends lab-anchor
  file /usr/lib/systemd/system/lab-service.service '[Service]
User=labsvc
ExecStart=/bin/sh -c "cat /etc/lab-service.conf /opt/lab-service/text >/var/lib/lab-service/seen; exec sleep infinity"
[Install]
WantedBy=multi-user.target'
  file /usr/lib/systemd/system/lab-spare.service '[Service]
ExecStart=/bin/sleep infinity
[Install]
WantedBy=multi-user.target'
  file /usr/lib/systemd/system-preset/50-lab-service.preset 'enable lab-service.service
disable lab-spare.service'
  file /usr/lib/sysusers.d/lab-service.conf 'u labsvc - "Lab service"'
  file /etc/lab-service.conf "default = yes"; config /etc/lab-service.conf
  file /opt/lab-service/text "in /opt"
  mkdir -p "$d/var/lib/lab-service"
  ghost /usr/share/lab-service.cache
  script post <<'END'
systemd-sysusers lab-service.conf
chown labsvc /var/lib/lab-service
systemctl --no-reload preset lab-service.service lab-spare.service
END
  end
  begin lab-shape 1.0
  file /opt/lab/bin/program "in /opt"
  file /usr/bin/lab-hard "one inode"
  ln "$d/usr/bin/lab-hard" "$d/usr/bin/lab-hard2"
  ln -s lab-hard "$d/usr/bin/lab-soft"
  program /usr/bin/lab-setuid
  chmod 4755 "$d/usr/bin/lab-setuid"
  attr /usr/bin/lab-setuid 4755 -
  program /usr/bin/lab-ping
  attr /usr/bin/lab-ping 755 cap_net_raw=ep
  script post <<'END'
setcap cap_net_raw=ep /usr/bin/lab-ping 2>/dev/null || :
END
  end
  begin lab-keys 1.0
  file /usr/share/lab/keys "makes keys"
  script post <<'END'
mkdir -p /etc/ssh && echo SECRET >/etc/ssh/ssh_host_lab_key && echo public >/etc/ssh/ssh_host_lab_key.pub
END
  end

  # What goes wrong.
  simple lab-failing 1.0; field depends lab-anchor
  script post <<'END'
i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo "line $i of the scriptlet"; done
echo "the lab's scriptlet cannot go on" >&2
exit 7
END
  end
  simple lab-failing-pre 1.0
  script pre <<'END'
echo "the lab's scriptlet will not begin" >&2
exit 3
END
  end
  hostile
}

# Scriptlets that attack the machine they run on. What they get hold of they
# write to /usr/share/lab/breach, in the layer.
hostile() {
  simple lab-destroyer 1.0
  script post <<'END'
rm -rf --no-preserve-root / >/dev/null 2>&1
exit 0
END
  end
  simple lab-spy 1.0
  script post <<'END'
mkdir -p /usr/share/lab
cat /proc/1/environ /proc/*/root/tmp/kedge-lab-sentinel /tmp/kedge-lab-sentinel /etc/shadow /root/.ssh/* /home/*/.ssh/* 2>/dev/null >/usr/share/lab/spied
ls /proc | grep -c '^[0-9]' >/usr/share/lab/processes
env | sort >/usr/share/lab/environment
exit 0
END
  end
  simple lab-caller 1.0
  script post <<'END'
mkdir -p /usr/share/lab
port=$(cat /etc/lab-port 2>/dev/null || echo 80)
if bash -c "exec 3<>/dev/tcp/127.0.0.1/$port" 2>/dev/null; then echo connected >>/usr/share/lab/breach; fi
tail -n +3 /proc/net/dev | grep -v lo: >>/usr/share/lab/breach
exit 0
END
  end
  simple lab-stayer 1.0
  script post <<'END'
mkdir -p /usr/share/lab
setsid sh -c 'trap "" HUP TERM; exec sleep 987' >/dev/null 2>&1 </dev/null &
exit 0
END
  end
  simple lab-filler 1.0
  script post <<'END'
cat /dev/zero >/usr/share/lab-fill 2>/dev/null
exit 0
END
  end
  simple lab-breaker 1.0
  script post <<'END'
mkdir -p /usr/share/lab
b=/usr/share/lab/breach
cp /proc/sys/kernel/core_pattern /usr/share/lab/pattern
if echo "|/usr/bin/lab-breaker" 2>/dev/null >/proc/sys/kernel/core_pattern; then echo core_pattern >>$b; fi
if echo h 2>/dev/null >/proc/sysrq-trigger; then echo sysrq >>$b; fi
if echo 1 2>/dev/null >/proc/sys/vm/drop_caches; then echo drop_caches >>$b; fi
if mknod /usr/share/lab/disk b 254 0 2>/dev/null; then echo mknod >>$b; fi
if mknod /tmp/disk b 254 0 2>/dev/null; then echo mknod-tmp >>$b; fi
if mount -t tmpfs none /mnt 2>/dev/null; then echo mount >>$b; fi
if mount -o remount,rw /proc/sys 2>/dev/null; then echo remount >>$b; fi
if unshare -U true 2>/dev/null; then echo userns >>$b; fi
if unshare -m true 2>/dev/null; then echo mountns >>$b; fi
if nsenter -t 1 -m true 2>/dev/null; then echo nsenter >>$b; fi
if hostname lab-broken 2>/dev/null; then echo hostname >>$b; fi
if date -s 2001-01-01 2>/dev/null >&2; then echo clock >>$b; fi
if chroot /proc/1/root sh -c '[ -e /tmp/kedge-lab-sentinel ]' 2>/dev/null; then echo chroot >>$b; fi
if ls /sys/kernel 2>/dev/null | grep -q .; then echo sysfs >>$b; fi
for p in /proc/[0-9]*; do [ -e "$p/root/tmp/kedge-lab-sentinel" ] && echo "host $p" >>$b; done
exit 0
END
  end
}
