package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/e2e/powercut/story"
	"github.com/kedge-os/kedge/internal/lab"
)

// root is where the booted root is, in the mount namespace of its boot.
const root = "/mnt"

// programs is where the booted root has what is not in its image.
const programs = "/run/programs/"

// quiet is how long the machine runs on after a step: longer than the journal's
// interval, shorter than the kernel's for data that nobody synced.
const quiet = 2 * time.Second

// host is a booted disk.
type host struct {
	device string
	marks  *os.File // the device, for marks
	size   int64    // of the device
	sync   bool
}

// boot boots a disk (DEVICE:BACKEND:FILESYSTEM[:nosync]) and does what is to be done in boot
// number n. The namespace ends with the process: the file systems are unmounted.
func boot(disk, n string) error {
	number, err := strconv.Atoi(n)
	if err != nil {
		return err
	}
	fields := strings.Split(disk, ":")
	h := &host{device: fields[0], sync: len(fields) < 4}
	if err := h.openMarks(); err != nil {
		return err
	}
	if err := h.mountRoot(fields[1], fields[2]); err != nil {
		return fmt.Errorf("mount the root: %w", err)
	}
	for _, s := range story.Boots[number] {
		if err := h.step(s); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	return nil
}

// mountRoot does what an initramfs does with the default entry.
func (h *host) mountRoot(backend, fs string) error {
	// The journal is committed every second instead of every fifth: no other
	// states, but a shorter test. Disks of two hosts are copies of one.
	options := map[string]string{"ext4": "commit=1", "btrfs": "commit=1", "xfs": "nouuid"}[fs]
	own, err := os.Executable()
	if err != nil {
		return err
	}
	if err := errors.Join(
		syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""),
		syscall.Mount("run", "/run", "tmpfs", 0, ""),
		os.MkdirAll(root, 0o755),
		syscall.Mount(h.device, root, fs, 0, options),
	); err != nil {
		return err
	}
	entry, err := lab.DefaultEntry(filepath.Join(root, "boot"))
	if err != nil {
		return err
	}
	for _, name := range []string{"kedge", "guest", "kedge-initramfs"} {
		if err := bind(filepath.Join(filepath.Dir(own), name), programs+name, true); err != nil {
			return err
		}
	}
	mount := map[string]func(string) error{"ostree": ostreeRoot, "composefs": composefsRoot}[backend]
	if err := mount(entry.Options); err != nil {
		return err
	}
	if err := bind(images, "/run/images", false); err != nil {
		return err
	}
	// A host that reboots has another command line.
	if err := os.WriteFile("/run/cmdline", []byte(entry.Options+"\n"), 0o644); err != nil {
		return err
	}
	if err := syscall.Mount("/run/cmdline", "/proc/cmdline", "", syscall.MS_BIND, ""); err != nil {
		return err
	}
	for _, dir := range []string{"/dev", "/proc", "/sys", "/run"} {
		if err := syscall.Mount(dir, root+dir, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	return syscall.Mount("tmp", root+"/tmp", "tmpfs", 0, "")
}

// ostreeRoot does what ostree-prepare-root does.
func ostreeRoot(options string) error {
	link := option(options, "ostree=")
	deployment, err := filepath.EvalSymlinks(root + link)
	if err != nil {
		return err
	}
	if err := os.WriteFile("/run/ostree-booted", nil, 0o644); err != nil {
		return err
	}
	// stateroot/deploy/CHECKSUM.SERIAL
	stateroot := filepath.Dir(filepath.Dir(deployment))
	return errors.Join(
		bind(deployment, "/run/root", false),
		bind(stateroot+"/var", "/run/root/var", false),
		bind(root, "/run/root/sysroot", false),
		bind(root+"/boot", "/run/root/boot", false),
		syscall.Mount("/run/root", root, "", syscall.MS_BIND|syscall.MS_REC, ""),
	)
}

func composefsRoot(options string) error {
	out, err := exec.Command(programs+"kedge-initramfs", "--sysroot", root, "--cmdline", options).CombinedOutput()
	if err != nil {
		return fmt.Errorf("kedge-initramfs: %w: %s", err, out)
	}
	return nil
}

func option(options, prefix string) string {
	for _, o := range strings.Fields(options) {
		if v, ok := strings.CutPrefix(o, prefix); ok {
			return v
		}
	}
	return ""
}

func bind(from, to string, file bool) error {
	var err error
	if file {
		err = errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, nil, 0o755))
	} else {
		err = os.MkdirAll(to, 0o755)
	}
	if err == nil {
		err = syscall.Mount(from, to, "", syscall.MS_BIND|syscall.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("bind %s to %s: %w", from, to, err)
	}
	return nil
}

// step runs kedge between two marks. Before each the disk is brought to rest.
func (h *host) step(s story.Step) error {
	if s.Images != "" {
		if err := os.Symlink("images/"+s.Images, story.Layout); err != nil {
			return err
		}
	}
	if err := h.mark(story.Begin + s.Name); err != nil {
		return err
	}
	argv := append([]string{programs + "kedge"}, s.Kedge...)
	if !h.sync {
		argv = append([]string{programs + "guest", "nosync"}, argv...)
	}
	began := time.Now()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin", "HOME=/tmp"}
	out, err := cmd.CombinedOutput()
	fmt.Printf("%s (%.1f s)\n%s", s.Name, time.Since(began).Seconds(), out)
	if err != nil {
		return err
	}
	time.Sleep(quiet)
	return h.mark(story.End + s.Name)
}

// mark makes everything durable, in its place too, and writes a mark.
func (h *host) mark(text string) error {
	fs, err := os.Open(root + "/sysroot")
	if err != nil {
		return err
	}
	defer fs.Close()
	if err := unix.Syncfs(int(fs.Fd())); err != nil {
		return err
	}
	for _, request := range []uint{fiFreeze, fiThaw} {
		if err := unix.IoctlSetInt(int(fs.Fd()), request, 0); err != nil {
			return fmt.Errorf("freeze or thaw %s: %w", h.device, err)
		}
	}
	return h.writeMark(text)
}

func (h *host) openMarks() (err error) {
	if h.marks, err = os.OpenFile(h.device, os.O_RDWR|unix.O_DIRECT|unix.O_SYNC, 0); err != nil {
		return err
	}
	h.size, err = h.marks.Seek(0, io.SeekEnd)
	return err
}

// writeMark writes a mark to the place behind the file system.
func (h *host) writeMark(text string) error {
	// What O_DIRECT asks for: an aligned buffer.
	buffer := make([]byte, 2*story.MarkSize)
	at := story.MarkSize - int(uintptr(unsafe.Pointer(&buffer[0]))%story.MarkSize) //nolint:gosec // an address to align
	block := buffer[at : at+story.MarkSize]
	copy(block, text)
	if _, err := h.marks.WriteAt(block, h.size-story.MarkSize); err != nil {
		return fmt.Errorf("write the mark %q: %w", text, err)
	}
	return nil
}
