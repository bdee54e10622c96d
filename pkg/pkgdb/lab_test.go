package pkgdb

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kedge-os/kedge/internal/lab"
)

// rpmWorld is a root with rpm, and a directory that it sees as /work.
type rpmWorld struct{ root, work, made string }

func newRPMWorld(t *testing.T) *rpmWorld {
	t.Helper()
	if testing.Short() {
		t.Skip("makes a root with rpm, some minutes once")
	}
	lab.NeedRoot(t)
	lab.Need(t, "bwrap")
	made, err := lab.Make(t.Context(), "packages.sh")
	if err != nil {
		t.Fatal(err)
	}
	w := &rpmWorld{root: t.TempDir(), work: t.TempDir(), made: made}
	if _, err := lab.Command(t.Context(), "tar", "-C", w.root, "-xf", filepath.Join(made, "dnf.tar")); err != nil {
		t.Fatal(err)
	}
	return w
}

// run runs a shell script in the root and returns its output.
func (w *rpmWorld) run(t *testing.T, script string, stdin []byte) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bwrap", "--bind", w.root, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--tmpfs", "/run",
		"--bind", w.work, "/run/work", "--ro-bind", w.made, "/run/made", "--unshare-pid", "--unshare-net", "--die-with-parent", "sh", "-euc", script)
	cmd.Stdin = bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	return string(out)
}

const listAll = `rpm -qa --qf '%{NAME}\t%|EPOCH?{%{EPOCH}:}:{}|%{VERSION}-%{RELEASE}\t%{ARCH}\n' `

// parseList reads what rpm lists.
func parseList(text string) (list []Package) {
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		list = append(list, Package{Name: f[0], Version: f[1], Arch: f[2]})
	}
	slices.SortFunc(list, comparePackages)
	return list
}

// database reads a directory of the work directory as a root's database.
func (w *rpmWorld) database(t *testing.T, dir string) []Package {
	t.Helper()
	root := t.TempDir()
	if err := os.CopyFS(filepath.Join(root, "usr/share/rpm"), os.DirFS(filepath.Join(w.work, dir))); err != nil {
		t.Fatal(err)
	}
	db, err := Read(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	if db.Kind != RPM {
		t.Errorf("the database is one of %s", db.Kind)
	}
	return db.Packages
}

// TestDatabasesLikeRPM holds what is read against rpm's own list, in each of
// its formats. A package with 2,000 files makes headers that fill many pages.
func TestDatabasesLikeRPM(t *testing.T) {
	lab.Need(t, "db5.3_load")
	w := newRPMWorld(t)
	w.run(t, `cd /run/work
printf '%s\n' 'Name: lab-many' 'Epoch: 3' 'Version: 1.0~rc1' 'Release: 2' 'Summary: many files' 'License: MIT' 'BuildArch: noarch' \
  '%description' 'Many files.' '%install' 'mkdir -p %{buildroot}/many; for i in $(seq 2000); do : >%{buildroot}/many/file-$i; done' '%files' '/many' >many.spec
rpmbuild -bb --quiet --define '_topdir /tmp/b' --define '_rpmdir /run/work' --define '_rpmfilename many.rpm' many.spec >&2
for backend in sqlite ndb; do
  rpm="rpm --define=_db_backend\ $backend --dbpath=/run/work/$backend"
  eval $rpm -i --justdb --nodeps --noscripts --force many.rpm /run/made/rpm/*.rpm
  eval $rpm -e --justdb --nodeps --noscripts lab-chain
done`, nil)
	want := parseList(w.run(t, listAll+"--define='_db_backend sqlite' --dbpath=/run/work/sqlite", nil))
	if len(want) < 30 {
		t.Fatalf("rpm lists %d packages", len(want))
	}
	for _, dir := range []string{"sqlite", "ndb"} {
		if diff := cmp.Diff(want, w.database(t, dir)); diff != "" {
			t.Errorf("%s: %s", dir, diff)
		}
	}
	t.Run("bdb", func(t *testing.T) {
		for _, pageSize := range []int{512, 4096} { // with a small one all headers overflow
			dir := fmt.Sprint("bdb", pageSize)
			w.makeBDB(t, dir, pageSize)
			if diff := cmp.Diff(want, parseList(w.run(t, listAll+"--define='_db_backend bdb_ro' --dbpath=/run/work/"+dir, nil))); diff != "" {
				t.Fatalf("rpm reads another database: %s", diff)
			}
			if diff := cmp.Diff(want, w.database(t, dir)); diff != "" {
				t.Errorf("%d: %s", pageSize, diff)
			}
		}
	})
	t.Run("a log that was not written back", func(t *testing.T) {
		w.run(t, `cp -r /run/work/sqlite /run/work/wal
python3 - <<'END'
import os, sqlite3, subprocess
db = sqlite3.connect('/run/work/wal/rpmdb.sqlite')
db.execute('begin')
db.execute('select * from Packages').fetchone()  # a reader keeps rpm from writing its log back
for names in (['lab-anchor', 'lab-nice'], ['lab-many']):
    subprocess.run(['rpm', '--dbpath=/run/work/wal', '-e', '--justdb', '--nodeps', '--noscripts'] + names, check=True)
os._exit(0)
END
test -s /run/work/wal/rpmdb.sqlite-wal
cp -r /run/work/wal /run/work/wal-for-rpm`, nil)
		want := parseList(w.run(t, listAll+"--dbpath=/run/work/wal-for-rpm", nil))
		got := w.database(t, "wal")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if slices.ContainsFunc(got, func(p Package) bool { return p.Name == "lab-many" }) {
			t.Error("the log was not read")
		}
	})
}

// makeBDB makes a Berkeley DB of what the SQLite database has.
func (w *rpmWorld) makeBDB(t *testing.T, dir string, pageSize int) {
	t.Helper()
	dump := w.run(t, `python3 - <<'END'
import sqlite3, struct
print('VERSION=3\nformat=bytevalue\ntype=hash\ndb_pagesize=`+strconv.Itoa(pageSize)+`\nHEADER=END')
print(' 00000000\n 40000000')
for num, blob in sqlite3.connect('/run/work/sqlite/rpmdb.sqlite').execute('select hnum, blob from Packages'):
    print(' %s\n %s' % (struct.pack('<I', num).hex(), blob.hex()))
print('DATA=END')
END`, nil)
	if err := os.Mkdir(filepath.Join(w.work, dir), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "db5.3_load", filepath.Join(w.work, dir, "Packages"))
	cmd.Stdin = strings.NewReader(dump)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestVersionsLikeRPM holds the order against rpm's own.
func TestVersionsLikeRPM(t *testing.T) {
	w := newRPMWorld(t)
	var in strings.Builder
	pairs := versions(20_000, "0019abzZ.+~^_")
	for _, v := range pairs {
		fmt.Fprintf(&in, "%s %s\n", v[0], v[1])
	}
	out := w.run(t, `python3 -c '
import rpm, sys
def evr(s):
    e, _, v = s.rpartition(":")
    v, r = v.rsplit("-", 1) if "-" in v else (v, "")
    return (e or "0", v, r)
for line in sys.stdin:
    a, b = line.split()
    print(rpm.labelCompare(evr(a), evr(b)))
'`, []byte(in.String()))
	lines := strings.Fields(out)
	if len(lines) != len(pairs) {
		t.Fatalf("rpm compared %d of %d pairs", len(lines), len(pairs))
	}
	for i, v := range pairs {
		if got := strconv.Itoa(CompareVersions(RPM, v[0], v[1])); got != lines[i] {
			t.Errorf("%s against %s is %s, rpm says %s", v[0], v[1], got, lines[i])
		}
	}
}
