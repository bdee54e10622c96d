package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Machine is a virtual machine: QEMU with a disk, without KVM, its kernel taken
// from the disk's own default boot entry at each start. The image on the disk
// must carry the lab's agent (the base image's tag "lab").
//
// A guest reaches this machine's loopback as HostAddress.
type Machine struct {
	Disk *Disk
	Dir  string // consoles, sockets, kernels; must exist

	// BootTimeout bounds a start until the agent answers; 0 is fifteen minutes. A
	// boot takes 45 s on two idle cores.
	BootTimeout time.Duration
	// MenuEntry is the line of the boot menu that is started; 0 is the default.
	MenuEntry int
	// ExtraOptions are added to the entry's kernel arguments.
	ExtraOptions string
	// Memory in MiB; 0 is 2048.
	Memory int
	// Firmware boots the disk as a machine does by itself (NewFirmwareDisk): OVMF
	// and the boot loader on the disk, which gives the kernel its arguments too.
	Firmware bool
	// SecureBoot has that firmware start only what Microsoft has signed, or what that
	// lets start. Enroll is for other keys.
	SecureBoot bool
	// WriteLog takes what is written to the disk, anew at each start (OpenWriteLog),
	// and WriteLog.before the disk as it is then; "": nothing is logged.
	WriteLog string

	boots int
}

// HostAddress is where a guest finds what listens on 127.0.0.1 here.
const HostAddress = "10.0.2.2"

// Guest is a running Machine whose agent has answered.
type Guest struct {
	Entry   BootEntry // what was booted
	Console string    // file with what the serial console printed

	qemu   *exec.Cmd
	exited chan struct{} // closed when QEMU has ended
	err    error         // QEMU's end; valid once exited is closed
	conn   net.Conn
	lines  *bufio.Reader
	nextID int
}

// Boot starts the machine and waits until its agent answers. On several
// emulated processors a kernel sometimes dies while it patches its own code,
// before anything of the image has run: such a machine is started again.
func (m *Machine) Boot(ctx context.Context) (*Guest, error) {
	const tries = 3
	m.boots++
	dir := filepath.Join(m.Dir, fmt.Sprintf("boot-%d", m.boots))
	for try := 1; ; try++ {
		if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
			return nil, err
		}
		g, err := m.boot(ctx, dir)
		if err == nil || try == tries || !emulatorDied(filepath.Join(dir, "console.log")) {
			return g, err
		}
	}
}

// emulatorDied reports whether the console has a panic from before the first
// program.
func emulatorDied(console string) bool {
	b, err := os.ReadFile(console)
	return err == nil && bytes.Contains(b, []byte("Kernel panic")) && !bytes.Contains(b, []byte("Run /init as init process"))
}

// boot is one try; dir takes the kernel, the initramfs and the console.
func (m *Machine) boot(ctx context.Context, dir string) (*Guest, error) {
	var entry BootEntry
	var firmware []string
	var err error
	if m.Firmware {
		entry.File = "what the firmware finds"
		firmware, err = m.firmwareArguments()
	} else {
		entry, err = m.Disk.bootFiles(ctx, dir, m.MenuEntry)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the boot entry: %w", err)
	}
	// A path below t.TempDir can be longer than a socket's may be.
	sockDir, err := os.MkdirTemp("", "kedge-vm-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(sockDir)
	sock := filepath.Join(sockDir, "agent")
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", sock)
	if err != nil {
		return nil, err
	}
	defer listener.Close()

	if m.WriteLog != "" {
		if err := os.WriteFile(m.WriteLog, nil, 0o600); err != nil {
			return nil, err
		}
		// Reading the boot entry has replayed the journal.
		if _, err := Command(ctx, "cp", "--sparse=always", m.Disk.Path, m.WriteLog+".before"); err != nil {
			return nil, err
		}
	}
	g := &Guest{Entry: entry, Console: filepath.Join(dir, "console.log"), exited: make(chan struct{})}
	g.qemu = exec.CommandContext(ctx, "qemu-system-x86_64", append(m.arguments(entry, g.Console, sock), firmware...)...)
	g.qemu.WaitDelay = time.Second
	// A test that is killed must not leave a machine running.
	g.qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said strings.Builder
	g.qemu.Stderr = &said
	if err := g.qemu.Start(); err != nil {
		return nil, err
	}
	go func() {
		g.err = g.qemu.Wait()
		if g.err != nil && said.Len() > 0 {
			g.err = fmt.Errorf("%w: %s", g.err, said.String())
		}
		close(g.exited)
		listener.Close()
	}()
	timeout := m.BootTimeout
	if timeout == 0 {
		timeout = 15 * time.Minute
	}
	if err := g.awaitAgent(listener, time.Now().Add(timeout)); err != nil {
		g.Kill()
		return nil, fmt.Errorf("booting %s: %w; the console ends with:\n%s", entry.File, err, g.ConsoleTail(25))
	}
	return g, nil
}

func (m *Machine) arguments(e BootEntry, console, sock string) []string {
	memory := m.Memory
	if memory == 0 {
		memory = 2048
	}
	disks := []drive{{m.Disk.Path, m.WriteLog}}
	if m.Disk.Boot != "" {
		disks = append(disks, drive{m.Disk.Boot, ""})
	}
	return append(qemuArguments(e, memory, strings.TrimSpace(e.Options+" "+m.ExtraOptions), console, disks),
		"-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0", "-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,path="+sock, "-device", "virtserialport,chardev=agent,name=kedge.agent")
}

// drive is a disk of a machine: a raw image, and where its write log goes.
type drive struct{ image, log string }

func (d drive) arguments(name string) []string {
	if d.log == "" {
		return []string{"-drive", "file=" + d.image + ",if=virtio,format=raw,cache=unsafe"}
	}
	// The guest sees a disk with a write cache, whose flushes are logged; on this
	// machine nothing has to be flushed. The log has no form for discards. Writes
	// that QEMU merges may have as many pieces as a system call takes, and with the
	// log's header two more: they would fail.
	return []string{
		"-drive", "driver=blklogwrites,if=none,id=" + name + ",cache=writeback,discard=ignore," +
			"file.driver=raw,file.file.driver=file,file.file.filename=" + d.image + ",file.cache.no-flush=on," +
			"log.driver=raw,log.file.driver=file,log.file.filename=" + d.log + ",log.cache.no-flush=on",
		"-device", "virtio-blk-pci,drive=" + name + ",write-cache=on,discard=off,write-zeroes=off,request-merging=off",
	}
}

// EmulatorOptions are the kernel arguments that every machine of the lab gets; one
// that boots by its firmware needs them in its entries.
//
// On a busy host an emulated timer is late, and the kernel's check of it panics.
// QEMU translates a program again for every address it is found at: addresses that
// are the same in each process halve the time of a boot. What Linux does about
// Spectre is a tenth of the rest. The security modules are the kernel's default but
// for bpf, and for the major one, which follows: systemd loads a program where it
// is there, and the verifier takes 14 s over it on an emulated processor.
//
// No story looks at what is masked here, nor at the devices of the emulated board
// whose drivers are kept out: udev takes ten seconds over them, and the network
// waits for udev. On a busy host systemd's 90 s for a device or a unit are short.
const EmulatorOptions = "no_timer_check norandmaps mitigations=off cryptomgr.notests " +
	"systemd.default_device_timeout_sec=900 systemd.default_timeout_start_sec=900 " +
	"module_blacklist=ahci,bochs,cfg80211,drm,i2c_i801,iTCO_wdt,kvm,kvm_amd,kvm_intel,lpc_ich," +
	"parport,parport_pc,pcspkr,powernow_k8,psmouse " +
	"systemd.mask=e2scrub_reap.service systemd.mask=fstrim.timer systemd.mask=getty.target " +
	"systemd.mask=modprobe@drm.service systemd.mask=netavark-dhcp-proxy.service systemd.mask=netavark-dhcp-proxy.socket " +
	"systemd.mask=proc-sys-fs-binfmt_misc.automount systemd.mask=systemd-binfmt.service " +
	"systemd.mask=systemd-networkd-persistent-storage.service " +
	"lsm=landlock,lockdown,yama,integrity"

// qemuArguments are those of every machine of the lab. The disks are /dev/vda and
// so on.
func qemuArguments(e BootEntry, memory int, options, console string, disks []drive) []string {
	major := "apparmor"
	if strings.Contains(options, "security=selinux") {
		major = "selinux"
	}
	options += " " + EmulatorOptions + "," + major
	args := []string{
		// One processor: a boot has little use for a second, tests have machines that
		// run side by side instead.
		"-accel", "tcg", "-smp", "1", "-cpu", "max", "-M", "q35", "-m", strconv.Itoa(memory),
		"-display", "none", "-no-reboot", "-serial", "file:" + console,
		"-device", "virtio-rng-pci",
	}
	if e.Linux != "" {
		args = append(args, "-kernel", e.Linux, "-append", options)
	}
	if e.Initrd != "" {
		args = append(args, "-initrd", e.Initrd)
	}
	for i, d := range disks {
		args = append(args, d.arguments("disk"+strconv.Itoa(i))...)
	}
	return args
}

func (g *Guest) awaitAgent(l net.Listener, deadline time.Time) error {
	conn, err := l.Accept()
	if err != nil {
		return g.orExit(err)
	}
	g.conn, g.lines = conn, bufio.NewReader(conn)
	line, err := g.readLine(deadline)
	if err == nil && line != "ready" {
		err = fmt.Errorf("the agent said %q", line)
	}
	return err
}

func (g *Guest) readLine(deadline time.Time) (string, error) {
	if err := g.conn.SetReadDeadline(deadline); err != nil {
		return "", err
	}
	line, err := g.lines.ReadString('\n')
	return strings.TrimSuffix(line, "\n"), g.orExit(err)
}

// orExit replaces a broken connection's error by the reason: QEMU's end.
func (g *Guest) orExit(err error) error {
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	select {
	case <-g.exited:
		how := "ended"
		if g.err != nil {
			how = g.err.Error()
		}
		return fmt.Errorf("the guest is gone: %w (QEMU: %s)", err, how)
	case <-time.After(2 * time.Second):
		return err
	}
}

// Run executes a bash script as root in the guest and returns what it printed,
// stdout and stderr together. A script that fails is an *ExitError.
func (g *Guest) Run(script string, timeout time.Duration) (string, error) {
	g.nextID++
	id := strconv.Itoa(g.nextID)
	deadline := time.Now().Add(timeout)
	if err := g.conn.SetWriteDeadline(deadline); err != nil {
		return "", err
	}
	request := id + " " + base64.StdEncoding.EncodeToString([]byte(script)) + "\n"
	if _, err := g.conn.Write([]byte(request)); err != nil {
		return "", g.orExit(err)
	}
	line, err := g.readLine(deadline)
	if err != nil {
		return "", fmt.Errorf("waiting for the guest to run %q: %w; the console ends with:\n%s", script, err, g.ConsoleTail(15))
	}
	fields := strings.Fields(line)
	if len(fields) < 2 || fields[0] != id {
		return "", fmt.Errorf("the agent answered %q to request %s", line, id)
	}
	code, err := strconv.Atoi(fields[1])
	if err != nil {
		return "", fmt.Errorf("the agent answered %q", line)
	}
	var out []byte
	if len(fields) > 2 {
		if out, err = base64.StdEncoding.DecodeString(fields[2]); err != nil {
			return "", err
		}
	}
	if code != 0 {
		return string(out), &ExitError{Script: script, Code: code, Output: string(out)}
	}
	return string(out), nil
}

// WaitBooted waits until every unit of the boot has started and the network is
// up, and returns systemd's word for the outcome: running, or degraded when a
// unit failed. The boot's own wait for the network ends after two minutes, which
// is not enough where the host is busy.
func (g *Guest) WaitBooted(timeout time.Duration) (string, error) {
	out, err := g.Run(fmt.Sprintf(`systemctl is-system-running --wait
/usr/lib/systemd/systemd-networkd-wait-online --timeout=%d >/dev/null 2>&1 || { networkctl status; exit 1; }`,
		int(timeout.Seconds())), 2*timeout)
	return strings.TrimSpace(out), err
}

// ExitError says that a guest's script ended with another code than 0.
type ExitError struct {
	Script string
	Code   int
	Output string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("guest script %q: exit code %d\n%s", e.Script, e.Code, e.Output)
}

// Shutdown stops the guest as its user would ("reboot" or "poweroff") and waits
// until it is down; what runs at shutdown has then run. The next Boot reads the
// boot entries anew, so it is the second half of a reboot.
func (g *Guest) Shutdown(verb string, timeout time.Duration) error {
	request := "0 " + base64.StdEncoding.EncodeToString([]byte("systemctl --no-block "+verb)) + "\n"
	if _, err := g.conn.Write([]byte(request)); err != nil {
		return g.orExit(err)
	}
	return g.WaitDown(timeout)
}

// WaitDown waits until the machine is down. One that reboots by itself is, until
// the next Boot.
func (g *Guest) WaitDown(timeout time.Duration) error {
	select {
	case <-g.exited:
		return g.err
	case <-time.After(timeout):
		tail := g.ConsoleTail(25)
		g.Kill()
		return fmt.Errorf("the guest was not down after %s; the console ends with:\n%s", timeout, tail)
	}
}

// Kill ends the guest as a power cut would and waits for QEMU to be gone.
func (g *Guest) Kill() {
	_ = g.qemu.Process.Kill() // it may have ended by itself
	<-g.exited
	if g.conn != nil {
		g.conn.Close()
	}
}

// ConsoleTail returns the last n lines of the serial console.
func (g *Guest) ConsoleTail(n int) string {
	b, err := os.ReadFile(g.Console)
	if err != nil {
		return err.Error()
	}
	return lastLines(strings.ReplaceAll(string(b), "\r", ""), n)
}
