// Package offline is what tests of sysroots that are not booted share: it makes
// them with kedge, copies them, lists them, and asks libostree, kedge and the
// boot entries which deployments they have.
package offline

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Listing describes each file below a directory by everything but its times.
type Listing map[string]string

// List describes what is below root.
func List(t testing.TB, root string) Listing {
	t.Helper()
	l := Listing{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		what := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what += fmt.Sprintf(" %d %.8x", st.Size, sha256.Sum256(data))
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			what += " -> " + target
		case unix.S_IFDIR:
			if Immutable(path) {
				what += " immutable"
			}
		}
		if x := xattrs(path); x != "" {
			what += " " + x
		}
		l[strings.TrimPrefix(path, root)] = what
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func xattrs(path string) string {
	names := make([]byte, 4096)
	n, err := unix.Llistxattr(path, names)
	if err != nil || n == 0 {
		return ""
	}
	all := strings.Split(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00")
	slices.Sort(all)
	var b strings.Builder
	for _, name := range all {
		value := make([]byte, 4096)
		n, _ := unix.Lgetxattr(path, name, value)
		fmt.Fprintf(&b, "%s=%x ", name, value[:max(n, 0)])
	}
	return b.String()
}

// Differences names up to ten paths that are not the same in both Listings.
func Differences(got, want Listing) string {
	all := maps.Clone(got)
	maps.Copy(all, want)
	var b strings.Builder
	n := 0
	for _, path := range slices.Sorted(maps.Keys(all)) {
		if got[path] == want[path] {
			continue
		}
		if n++; n <= 10 {
			fmt.Fprintf(&b, "\n  %s: %q, want %q", path, got[path], want[path])
		}
	}
	if n > 10 {
		fmt.Fprintf(&b, "\n  and %d more", n-10)
	}
	return b.String()
}

// immutableFlag is FS_IMMUTABLE_FL of linux/fs.h.
const immutableFlag = 0x10

// Immutable says whether a directory has the immutable flag.
func Immutable(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	return err == nil && flags&immutableFlag != 0
}

// setImmutable sets or takes the flag of the deployment directories.
func setImmutable(t testing.TB, sysroot string, on func(relative string) bool) {
	t.Helper()
	dirs, err := filepath.Glob(sysroot + "/ostree/deploy/*/deploy/*.*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err == nil {
			changed := flags &^ immutableFlag
			if on(strings.TrimPrefix(dir, sysroot)) {
				changed |= immutableFlag
			}
			if changed != flags {
				err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, changed)
			}
		}
		f.Close()
		if err != nil {
			t.Fatalf("immutable flag of %s: %v", dir, err)
		}
	}
}

// Release makes a sysroot removable.
func Release(t testing.TB, sysroot string) {
	t.Helper()
	setImmutable(t, sysroot, func(string) bool { return false })
}

// Copy makes a copy with hard links, times, xattrs and immutable flags.
func Copy(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "sysroot")
	Run(t, "cp", "-a", from, to)
	setImmutable(t, to, func(dir string) bool { return Immutable(from + dir) })
	t.Cleanup(func() { Release(t, to) })
	return to
}

// Run runs a program that has to succeed and returns its standard output.
func Run(t testing.TB, argv ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(argv, " "), err, out.String(), errs.String())
	}
	return out.String()
}

// Deployment is one as ostree and kedge both name it.
type Deployment struct {
	Stateroot, Checksum string
	Serial              uint32
}

// Dir is the deployment's directory below the sysroot.
func (d Deployment) Dir() string {
	return fmt.Sprintf("/ostree/deploy/%s/deploy/%s.%d", d.Stateroot, d.Checksum, d.Serial)
}

var statusLine = regexp.MustCompile(`(?m)^[* ] (\S+) ([0-9a-f]{64})\.(\d+)( \(.*\))?$`)

// OSTreeDeployments asks libostree for the deployments, in boot order.
func OSTreeDeployments(t testing.TB, sysroot string) (all []Deployment) {
	t.Helper()
	for _, m := range statusLine.FindAllStringSubmatch(Run(t, "ostree", "admin", "status", "--sysroot="+sysroot), -1) {
		d := Deployment{Stateroot: m[1], Checksum: m[2]}
		serial, _ := strconv.ParseUint(m[3], 10, 32) // digits, says the expression
		d.Serial = uint32(serial)
		all = append(all, d)
	}
	return all
}
