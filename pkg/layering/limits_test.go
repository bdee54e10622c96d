package layering_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/layering"
)

// deb builds a package with a scriptlet.
func deb(t *testing.T, name, postinst string) string {
	t.Helper()
	lab.Need(t, "dpkg-deb")
	dir := filepath.Join(t.TempDir(), name)
	write(t, filepath.Join(dir, "DEBIAN/control"), "Package: "+name+"\nVersion: 1\nArchitecture: all\nMaintainer: lab <lab@example.com>\nDescription: a package of the lab\n")
	write(t, filepath.Join(dir, "DEBIAN/postinst"), "#!/bin/sh\n"+postinst)
	if err := os.Chmod(filepath.Join(dir, "DEBIAN/postinst"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := dir + ".deb"
	if _, err := lab.Command(t.Context(), "dpkg-deb", "--root-owner-group", "-b", dir, file); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestLimits: a scriptlet that takes the machine's processes or memory is ended,
// with all that it started, and the session goes on.
func TestLimits(t *testing.T) {
	w := newWorld(t, "apt")
	s := w.open(t)
	defer w.close(t, s)
	bomb := deb(t, "lab-bomb", "i=0; while [ $i -lt 5000 ]; do sleep 600 & i=$((i+1)); done\nsleep 600\n")
	_, err := build(t.Context(), s, layering.Request{Files: []string{bomb}})
	if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "processes") {
		t.Errorf("a scriptlet that starts 5,000 processes: %v", err)
	}
	if pid := runningIn(t, w.work); pid != "" {
		t.Errorf("process %s of it still runs", pid)
	}
	// What is written to /tmp is memory.
	full := deb(t, "lab-scratch", "for d in /tmp /var/tmp /run /dev/shm; do\n  df --output=size -B1 $d | tail -n 1\ndone\ncat /dev/zero >/dev/shm/fill 2>/dev/null; stat -c 'filled with %s' /dev/shm/fill\nexit 3\n")
	_, err = build(t.Context(), s, layering.Request{Files: []string{full}})
	if fault.KindOf(err) != fault.Scriptlet || !strings.Contains(err.Error(), "filled with") {
		t.Fatalf("a scriptlet that fills /dev/shm: %v", err)
	}
	for line := range strings.Lines(err.Error()) {
		var n int64
		if _, serr := fmt.Sscan(line, &n); serr == nil && n > 2<<30 {
			t.Errorf("a place for temporary files has %d bytes", n)
		}
	}
	if _, err := build(t.Context(), s, layering.Request{Install: []string{"lab-anchor"}}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestHostAccounts: numbers that this host gave to somebody are not a package's.
func TestHostAccounts(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		first := w.mustAdd(t, "lab-daemon")
		labd, helper := account(t, first, "user", "labd"), account(t, first, "user", "lab-helper")
		passwd := fmt.Sprintf("root:x:0:0::/root:/bin/sh\nsomebody:x:%d:1000::/:/bin/sh\nlab-helper:x:555:555::/:/bin/false\n", labd)
		write(t, filepath.Join(w.etc, "passwd"), passwd)
		write(t, filepath.Join(w.etc, "group"), "root:x:0:\nlab-helper:x:555:\n")
		second := w.mustAdd(t, "lab-daemon")
		if got := account(t, second, "user", "lab-helper"); got != 555 {
			t.Errorf("lab-helper has the number %d, the host's is 555 (in the image it was %d)", got, helper)
		}
		if got := account(t, second, "user", "labd"); got == labd || got < 100 || got > 999 {
			t.Errorf("labd has the number %d, which the host gave to somebody", got)
		}
		if e := second.files["usr/share/lab/owned"]; e == nil || e.Uid != 555 {
			t.Errorf("the file of lab-helper: %+v", e)
		}
		for _, a := range second.Accounts {
			if a.Name == "lab-helper" && a.Kind == "user" && !strings.HasPrefix(a.Line, "lab-helper:x:555:555:") && !strings.HasPrefix(a.Line, "lab-helper:!:555:555:") {
				t.Errorf("passwd has %s", a.Line)
			}
		}
		lock := *second.lock
		lock.Accounts = second.Accounts
		s := w.open(t)
		defer w.close(t, s)
		third, err := apply(t.Context(), s, &lock)
		if err != nil || third.DiffID != second.DiffID {
			t.Errorf("with the numbers in the lock: %v, %v", err, third)
		}
	})
}

// TestMany: a thousand packages in one request; with apt a hundred, nightly a
// thousand.
func TestMany(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		many := 1000
		if w.tool == "apt" && os.Getenv("KEDGE_NIGHTLY") == "" {
			many = 100 // dpkg takes a minute and more for 1000
		}
		var names []string
		for i := range many {
			names = append(names, fmt.Sprintf("lab-bulk-%d", i+1))
		}
		r := w.mustAdd(t, names...)
		if len(r.lock.Install) != many {
			t.Errorf("%d packages are locked", len(r.lock.Install))
		}
	})
}

// TestJournal: what packages say is in the journal, line by line.
func TestJournal(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		socket := filepath.Join(t.TempDir(), "socket")
		journal, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: socket})
		if err != nil {
			t.Fatal(err)
		}
		said := make(chan string)
		go func() {
			var all strings.Builder
			buf := make([]byte, 1<<20)
			for {
				n, err := journal.Read(buf)
				if err != nil || string(buf[:n]) == "the end" {
					said <- all.String()
					return
				}
				all.Write(buf[:n])
			}
		}()
		opt := w.options(t)
		opt.Journal = socket
		s, err := layering.Open(t.Context(), w.base, opt)
		if err != nil {
			t.Fatal(err)
		}
		defer w.close(t, s)
		if _, err := build(t.Context(), s, layering.Request{Install: []string{"lab-failing"}}); fault.KindOf(err) != fault.Scriptlet {
			t.Errorf("a scriptlet that fails: %v", err)
		}
		// What was sent before it is read before it.
		if _, err := journal.WriteToUnix([]byte("the end"), &net.UnixAddr{Net: "unixgram", Name: socket}); err != nil {
			t.Fatal(err)
		}
		got := <-said
		journal.Close()
		for _, want := range []string{"SYSLOG_IDENTIFIER=kedge-packages\n", "line 3 of the scriptlet\n", "the lab's scriptlet cannot go on\n"} {
			if !strings.Contains(got, want) {
				t.Errorf("the journal lacks %q: %.2000q", want, got)
			}
		}
	})
}
