package powercut

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kedge-os/kedge/e2e/offline"
	"github.com/kedge-os/kedge/e2e/powercut/story"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/units"
)

// diskSize is the size of a host's file system, not far above xfs's smallest.
const diskSize = 320 << 20

// record is what became of one host.
type record struct {
	fs      filesystem
	backend offline.Backend
	control bool   // the host's kedge had no syncs
	before  string // image of the disk before the machine ran
	after   string // and as the machine left it
	log     *lab.WriteLog
}

func (r *record) name() string {
	if r.control {
		return string(r.backend) + " without syncs"
	}
	return string(r.backend)
}

// scratch is a directory in memory where there is room for it: disks are made
// and unmounted by the thousand.
func scratch(t *testing.T) string {
	t.Helper()
	base := "/dev/shm"
	if _, err := os.Stat(base); err != nil {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "kedge-powercut-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// live has a host of each backend, with and without syncs, live the story: on this
// machine's kernel, or with KEDGE_POWERCUT_MACHINE set, in an emulated machine.
func live(t *testing.T, dir, kedge string, fs filesystem) []*record {
	t.Helper()
	var records []*record
	for _, b := range offline.Backends {
		first := installed(t, dir, kedge, b, fs)
		for _, control := range []bool{false, true} {
			r := &record{fs: fs, backend: b, control: control}
			r.before = filepath.Join(dir, strings.ReplaceAll(r.name(), " ", "-")+".before")
			r.after = strings.TrimSuffix(r.before, ".before") + ".after"
			fs.copy(t, first, r.before)
			copyDisk(t, r.before, r.after)
			records = append(records, r)
		}
	}
	programs := map[string]string{"kedge": filepath.Join(dir, "kedge")}
	copyDisk(t, kedge, programs["kedge"])
	for name, pkg := range map[string]string{"guest": "e2e/powercut/guest", "kedge-initramfs": "cmd/kedge-initramfs"} {
		programs[name] = filepath.Join(dir, name)
		if _, err := lab.Command(t.Context(), "env", "CGO_ENABLED=0", "go", "build", "-C", lab.SourceDir(), "-trimpath",
			"-tags", lab.BuildTags, "-ldflags", "-s -w", "-o", programs[name], "./"+pkg); err != nil {
			t.Fatal(err)
		}
	}
	run := runHere
	if machine := os.Getenv("KEDGE_POWERCUT_MACHINE"); machine != "" {
		run = runMachine
	}
	began := time.Now()
	out, err := run(t, dir, programs, imagesDisk(t, dir), records)
	t.Logf("the hosts lived for %.0f s:\n%s", time.Since(began).Seconds(), out)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if r.log, err = lab.OpenWriteLog(r.after + ".log"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.log.Close() })
		r.checkLog(t, dir)
	}
	return records
}

// argument names the host of a record to the guest program.
func (r *record) argument(device string) string {
	s := device + ":" + string(r.backend) + ":" + r.fs.kind
	if r.control {
		s += ":nosync"
	}
	return s
}

// runMachine runs the hosts in QEMU, on disks with a write cache.
func runMachine(t *testing.T, dir string, programs map[string]string, images string, records []*record) (string, error) {
	t.Helper()
	medium := lab.Medium{Dir: dir, Logged: true, Disks: []string{images}, Files: map[string]string{}}
	command := "modprobe -a erofs overlay loop " + records[0].fs.kind + "\nguest machine /dev/vda"
	for i, r := range records {
		medium.Disks = append(medium.Disks, r.after)
		command += " " + r.argument(fmt.Sprintf("/dev/vd%c", 'b'+i))
	}
	for name, path := range programs {
		medium.Files["usr/bin/"+name] = path
	}
	var err error
	if medium.Kernel, medium.Initramfs, err = lab.BootFiles(lab.ComposefsBackendImage(t)); err != nil {
		return "", err
	}
	return medium.Run(t.Context(), command+"\n", 20*time.Minute)
}

// runHere runs the hosts on this machine's kernel, on loop devices.
func runHere(t *testing.T, _ string, programs map[string]string, images string, records []*record) (out string, err error) {
	t.Helper()
	device, err := lab.Command(t.Context(), "losetup", "--find", "--show", "--read-only", images)
	if err != nil {
		return "", err
	}
	device = strings.TrimSpace(device)
	defer func() {
		_, derr := lab.Command(context.Background(), "losetup", "--detach", device)
		err = errors.Join(err, derr)
	}()
	args := []string{"machine", device}
	for _, r := range records {
		d, err := lab.NewLogDisk(t.Context(), r.after, r.after+".log")
		if err != nil {
			return "", err
		}
		defer func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}()
		args = append(args, r.argument(d.Device))
	}
	cmd := exec.CommandContext(t.Context(), programs["guest"], args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	b, err := cmd.CombinedOutput()
	return string(b), err
}

// checkLog holds the log against the disk: replayed to its end it has to make
// what the machine left.
func (r *record) checkLog(t *testing.T, dir string) {
	t.Helper()
	whole := filepath.Join(dir, "whole.img")
	copyDisk(t, r.before, whole)
	defer os.Remove(whole)
	p, err := lab.NewReplayer(r.log, whole)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Forward(len(r.log.Entries)); err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Command(t.Context(), "cmp", whole, r.after); err != nil {
		t.Errorf("the write log of %s does not lead to the disk that the machine left: %v", r.name(), err)
	}
}

func copyDisk(t *testing.T, from, to string) {
	t.Helper()
	if _, err := lab.Command(t.Context(), "cp", "--sparse=always", from, to); err != nil {
		t.Fatal(err)
	}
}

// installed makes a disk whose host runs version 1 of the image.
func installed(t *testing.T, dir, kedge string, b offline.Backend, fs filesystem) string {
	t.Helper()
	path := filepath.Join(dir, string(b)+".img")
	disk, err := fs.newDisk(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	layout := filepath.Join(dir, "version1")
	if _, err := os.Stat(layout); err != nil {
		smallimage.Layout(t, layout, map[string]v1.Image{"1": image(t, 1)})
	}
	err = disk.With(t.Context(), func(root string) error {
		args := append([]string{"install", "to-filesystem", "--image", "oci:" + layout + ":1", "--karg", "root=LABEL=root", "--karg", "rw"}, b.Flags()...)
		_, err := lab.Command(t.Context(), kedge, append(args, root)...)
		return err
	})
	if err == nil {
		err = os.Truncate(path, diskSize+story.MarkSize)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// imagesDisk makes the disk with the images of the story.
func imagesDisk(t *testing.T, dir string) string {
	t.Helper()
	top := filepath.Join(dir, "images")
	for name, tags := range story.Layouts {
		all := map[string]v1.Image{}
		for tag, version := range tags {
			all[tag] = image(t, version)
		}
		if err := os.MkdirAll(top, 0o755); err != nil {
			t.Fatal(err)
		}
		smallimage.Layout(t, filepath.Join(top, name), all)
	}
	path := filepath.Join(dir, "images.img")
	if _, err := lab.Command(t.Context(), "mkfs.ext4", "-q", "-d", top, path, "64M"); err != nil {
		t.Fatal(err)
	}
	return path
}

// image is a version of the small OS, in which kedge can run: with what it needs
// to freeze a file system, and a kernel and initramfs of several megabytes.
func image(t *testing.T, version int) v1.Image {
	t.Helper()
	entries := smallimage.OS(version)
	ours := map[string]string{"usr/bin/sh": "/bin/dash", "usr/bin/fsfreeze": "fsfreeze"}
	entries = slices.DeleteFunc(entries, func(e smallimage.Entry) bool { return ours[e.Name] != "" || e.Name == "usr/bin/bash" })
	rnd := rand.NewChaCha8([32]byte{byte(version)})
	for i, e := range entries {
		if size := map[string]int{"vmlinuz": 3 << 20, "initramfs.img": 2 << 20}[filepath.Base(e.Name)]; size > 0 {
			noise := make([]byte, size)
			_, _ = rnd.Read(noise)
			entries[i] = smallimage.File(e.Name, e.Mode, e.Body+string(noise))
		}
	}
	entries = append(
		entries, smallimage.Dir("usr/lib64"), smallimage.Symlink("lib64", "usr/lib64"), smallimage.Dir("usr/lib/x86_64-linux-gnu"),
		smallimage.Dir("etc/containers"), smallimage.File("etc/containers/policy.json", 0, `{"default": [{"type": "insecureAcceptAnything"}]}`),
		// Nothing starts units here: what they run is run by the story.
		smallimage.File("usr/bin/systemctl", 0o755, "#!/bin/sh\n"), smallimage.Dir("usr/lib/systemd"), smallimage.Dir("usr/lib/systemd/system"),
	)
	for _, name := range units.Names {
		text, err := units.Text(name, units.DefaultProgram)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, smallimage.File("usr/lib/systemd/system/"+name, 0, text))
	}
	for name, program := range ours {
		entries = append(entries, programFile(t, name, program))
	}
	for name, path := range map[string]string{
		"usr/lib64/ld-linux-x86-64.so.2": "/lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu/libc.so.6": "/lib/x86_64-linux-gnu/libc.so.6",
	} {
		entries = append(entries, programFile(t, name, path))
	}
	slices.SortStableFunc(entries, func(a, b smallimage.Entry) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	return smallimage.New(t, fmt.Sprint(version), entries)
}
