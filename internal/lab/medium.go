package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// Medium is a machine without a host: a kernel, and an initramfs that runs one
// script and turns the machine off, as an installation medium does. It has what
// this machine's kernel may lack (fs-verity), and is up in ten seconds.
type Medium struct {
	Dir       string // scratch, and the console; must exist
	Kernel    string
	Initramfs string
	Files     map[string]string // path in the initramfs → executable here
	Disks     []string          // raw images: /dev/vda and so on
	Logged    bool              // write logs of the disks in DISK.log (OpenWriteLog)
	Memory    int               // in MiB; 0 is 2048
}

// mediumInit sets up what a script expects of a machine. Dracut's initramfs has
// the tools.
const mediumInit = `#!/bin/sh
export PATH=/usr/sbin:/usr/bin HOME=/root
mkdir -p /proc /sys /dev /run /tmp /var/tmp /root
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /tmp; mount -t tmpfs tmpfs /var/tmp
modprobe -a virtio_pci virtio_blk ext4
sh -e /medium-script
echo "lab: the script ended with $?"
# The serial line is slower than a reset.
sleep 1
echo s >/proc/sysrq-trigger
echo b >/proc/sysrq-trigger
sleep 60
`

var mediumEnd = regexp.MustCompile(`lab: the script ended with (\d+)`)

// Run runs a shell script as root and returns what it printed, among the
// kernel's words. A script that fails is an error.
func (m *Medium) Run(ctx context.Context, script string, timeout time.Duration) (string, error) {
	initramfs, err := m.pack(ctx, script)
	if err != nil {
		return "", err
	}
	defer os.Remove(initramfs)
	memory := m.Memory
	if memory == 0 {
		memory = 2048
	}
	console := filepath.Join(m.Dir, "console-medium.log")
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	drives := make([]drive, len(m.Disks))
	for i, d := range m.Disks {
		drives[i].image = d
		if !m.Logged {
			continue
		}
		drives[i].log = d + ".log"
		if err := os.WriteFile(drives[i].log, nil, 0o600); err != nil {
			return "", err
		}
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", qemuArguments(BootEntry{Linux: m.Kernel, Initrd: initramfs}, memory,
		"console=ttyS0 panic=1 quiet rdinit=/medium-init", console, drives)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	said, runErr := cmd.CombinedOutput()
	b, err := os.ReadFile(console)
	if err != nil {
		return "", errors.Join(runErr, err)
	}
	out := strings.ReplaceAll(string(b), "\r", "")
	end := mediumEnd.FindStringSubmatch(out)
	switch {
	case runErr != nil || end == nil:
		return out, fmt.Errorf("the machine ended before its script did: %w %s; the console ends with:\n%s", errors.Join(runErr, ctx.Err()), said, lastLines(out, 25))
	case end[1] != "0":
		return out, fmt.Errorf("the script ended with %s; the console ends with:\n%s", end[1], lastLines(out, 25))
	}
	return out, nil
}

// pack returns the initramfs with the script and the files behind it.
func (m *Medium) pack(ctx context.Context, script string) (_ string, err error) {
	extra, err := os.MkdirTemp(m.Dir, "medium-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(extra)
	if err := errors.Join(
		os.WriteFile(filepath.Join(extra, "medium-init"), []byte(mediumInit), 0o755),
		os.WriteFile(filepath.Join(extra, "medium-script"), []byte(script), 0o644),
	); err != nil {
		return "", err
	}
	for to, from := range m.Files {
		if _, err := Command(ctx, "install", "-D", "-m", "755", from, filepath.Join(extra, to)); err != nil {
			return "", err
		}
	}
	packed := filepath.Join(m.Dir, "initramfs-medium.img")
	// Archives follow each other on multiples of four bytes.
	_, err = Command(ctx, "bash", "-ec", `cp "$1" "$2"; truncate -s %4 "$2"; cd "$3"
		find . -mindepth 1 -printf '%P\n' | cpio --quiet --create --format newc --owner 0:0 >>"$2"`, "-", m.Initramfs, packed, extra)
	return packed, err
}
