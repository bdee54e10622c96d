package powercut

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kedge-os/kedge/e2e/offline"
	"github.com/kedge-os/kedge/e2e/powercut/story"
	"github.com/kedge-os/kedge/e2e/smallimage"
	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/boot/units"
)

// diskSize is the size of a host's file system.
const diskSize = 256 << 20

// record is what became of one host.
type record struct {
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

// runMachine lets one machine live the story on a disk of each backend, with and
// without syncs.
func runMachine(t *testing.T, dir, kedge string) []*record {
	t.Helper()
	images := imagesDisk(t, dir)
	var records []*record
	medium := lab.Medium{Dir: dir, Logged: true, Disks: []string{images}, Files: map[string]string{"usr/bin/kedge": kedge}}
	command := "guest machine /dev/vda"
	for _, b := range offline.Backends {
		before := installed(t, dir, kedge, b)
		for _, control := range []bool{false, true} {
			r := &record{backend: b, control: control, before: before}
			r.after = filepath.Join(dir, strings.ReplaceAll(r.name(), " ", "-")+".after")
			copyDisk(t, before, r.after)
			command += fmt.Sprintf(" /dev/vd%c:%s", 'a'+len(medium.Disks), b)
			if control {
				command += ":nosync"
			}
			medium.Disks = append(medium.Disks, r.after)
			records = append(records, r)
		}
	}
	for name, pkg := range map[string]string{"guest": "e2e/powercut/guest", "kedge-initramfs": "cmd/kedge-initramfs"} {
		path := filepath.Join(dir, name)
		if _, err := lab.Command(t.Context(), "env", "CGO_ENABLED=0", "go", "build", "-C", lab.SourceDir(), "-trimpath",
			"-tags", lab.BuildTags, "-ldflags", "-s -w", "-o", path, "./"+pkg); err != nil {
			t.Fatal(err)
		}
		medium.Files["usr/bin/"+name] = path
	}
	var err error
	if medium.Kernel, medium.Initramfs, err = lab.BootFiles(lab.ComposefsBackendImage(t)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	out, err := medium.Run(t.Context(), "modprobe -a erofs overlay loop\n"+command+"\n", 20*time.Minute)
	t.Logf("the machine ran for %.0f s:\n%s", time.Since(began).Seconds(), out)
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
		t.Fatalf("the write log of %s does not lead to the disk that the machine left: %v", r.name(), err)
	}
}

func copyDisk(t *testing.T, from, to string) {
	t.Helper()
	if _, err := lab.Command(t.Context(), "cp", "--sparse=always", from, to); err != nil {
		t.Fatal(err)
	}
}

// installed makes a disk whose host runs version 1 of the image.
func installed(t *testing.T, dir, kedge string, b offline.Backend) string {
	t.Helper()
	path := filepath.Join(dir, string(b)+".img")
	// Nothing is left to be initialized when the machine runs.
	disk, err := lab.NewDisk(t.Context(), path, "ext4 -E lazy_itable_init=0,lazy_journal_init=0 -N 16384", "root", diskSize)
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
