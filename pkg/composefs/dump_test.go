package composefs

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/pkg/fault"
)

const (
	rootLine = "/ 0 40755 2 0 0 0 0.0 - - -\n"
	manual   = `/ 4096 40755 4 1000 1000 0 1695372970.944925700 - - - security.selinux=unconfined_u:object_r:unlabeled_t:s0\x00
/a\x20dir\x20w\x20space 27 40755 2 1000 1000 0 1694598852.869646118 - - - security.selinux=unconfined_u:object_r:unlabeled_t:s0\x00
/a-dir 45 40755 2 1000 1000 0 1674041780.601887980 - - - security.selinux=unconfined_u:object_r:unlabeled_t:s0\x00
/a-dir/a-file 259 100644 1 1000 1000 0 1695368732.385062094 35/d02f81325122d77ec1d11baba655bc9bf8a891ab26119a41c50fa03ddfb408 - 35d02f81325122d77ec1d11baba655bc9bf8a891ab26119a41c50fa03ddfb408 security.selinux=unconfined_u:object_r:unlabeled_t:s0\x00
/a-hardlink 259 @100644 1 1000 1000 0 1695368732.385062094 /a-dir/a-file - 35d02f81325122d77ec1d11baba655bc9bf8a891ab26119a41c50fa03ddfb408 security.selinux=unconfined_u:object_r:unlabeled_t:s0\x00
/inline.txt 10 100644 1 1000 1000 0 1697019909.446146440 - some-text\n - security.selinux=unconfined_u:object_r:unlabeled_t:s0\x00
`
)

// TestDumpManual reads and writes the example of composefs-dump(5).
func TestDumpManual(t *testing.T) {
	tree, err := ReadDump(strings.NewReader(strings.TrimSuffix(manual, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	if got := dumpOf(t, tree); got != manual {
		t.Errorf("written again, the manual's dump is\n%s", got)
	}
	if n := tree.Lookup("/a-hardlink"); n != tree.Lookup("a-dir/a-file") {
		t.Errorf("the hard link leads to %+v", n)
	}
}

func TestDumpRoundTrip(t *testing.T) {
	for seed := range uint64(300) {
		want := dumpOf(t, randomTree(seed))
		tree, err := ReadDump(strings.NewReader(want))
		if err != nil {
			var d *DumpError
			if !errors.As(err, &d) || !strings.Contains(d.Reason, "xattrs of") {
				t.Errorf("seed %d: %v", seed, err)
			}
			continue
		}
		if got := dumpOf(t, tree); got != want {
			t.Errorf("seed %d: the dump is not the same when read and written again", seed)
		}
	}
}

// TestDumpRefuses has the dumps that are refused; those that mkcomposefs takes
// all the same say why we do not.
func TestDumpRefuses(t *testing.T) {
	file := func(fields string) string { return rootLine + "/f " + fields + "\n" }
	for _, tc := range []struct {
		name, dump string
		line       int
		stricter   string
	}{
		{name: "nothing", dump: ""},
		{name: "an empty line", dump: "\n", line: 1},
		{name: "no root", dump: "/f 0 100644 1 0 0 0 0.0 - - -\n", line: 1},
		{name: "two roots", dump: rootLine + rootLine, line: 2},
		{name: "a root that is a file", dump: "/ 0 100644 1 0 0 0 0.0 - - -\n", line: 1},
		{name: "too few fields", dump: file("0 100644 1 0"), line: 2},
		{name: "a NUL byte", dump: file("0 100644 1 0 0 0 0.0 - - - user.a=\x00"), line: 2},
		{name: "a path with dots", dump: rootLine + "/.. 0 40755 1 0 0 0 0.0 - - -\n", line: 2},
		{name: "a path through dots", dump: rootLine + "/a/../b 0 40755 1 0 0 0 0.0 - - -\n", line: 2},
		{name: "a missing parent", dump: rootLine + "/a/b 0 40755 1 0 0 0 0.0 - - -\n", line: 2},
		{name: "a file as parent", dump: file("0 100644 1 0 0 0 0.0 - - -") + "/f/g 0 100644 1 0 0 0 0.0 - - -\n", line: 3},
		{name: "a path twice", dump: file("0 100644 1 0 0 0 0.0 - - -") + "/f 0 40755 1 0 0 0 0.0 - - -\n"},
		{name: "a trailing slash", dump: rootLine + "/d/ 0 40755 1 0 0 0 0.0 - - -\n", line: 2},
		{name: "a long name", dump: rootLine + "/" + strings.Repeat("n", 256) + " 0 100644 1 0 0 0 0.0 - - -\n", line: 2},
		{name: "a mode without a type", dump: file("0 644 1 0 0 0 0.0 - - -"), line: 2},
		{name: "a decimal mode", dump: file("0 100689 1 0 0 0 0.0 - - -"), line: 2},
		{name: "a time without nanoseconds", dump: file("0 100644 1 0 0 0 0 - - -"), line: 2},
		{name: "a bad escape", dump: file(`1 100644 1 0 0 0 0.0 - \q -`), line: 2},
		{name: "half an escape", dump: file(`1 100644 1 0 0 0 0.0 - \x4 -`), line: 2},
		{name: "an escape that is no hexadecimal", dump: file(`1 100644 1 0 0 0 0.0 - \xgg -`), line: 2},
		{name: "a signed escape", dump: file(`1 100644 1 0 0 0 0.0 - \x+1 -`), line: 2},
		{name: "a backslash at the end", dump: file(`1 100644 1 0 0 0 0.0 a\ - -`), line: 2},
		{name: "content of another size", dump: file("3 100644 1 0 0 0 0.0 - ab -"), line: 2},
		{name: "too much content", dump: file("5001 100644 1 0 0 0 0.0 - " + strings.Repeat("c", 5001) + " -"), line: 2},
		{name: "a long payload", dump: file("1 100644 1 0 0 0 0.0 " + strings.Repeat("p", 4096) + " - -"), line: 2},
		{name: "a symlink without target", dump: file("0 120777 1 0 0 0 0.0 - - -"), line: 2},
		{name: "a directory as hard link", dump: rootLine + "/l 0 @40755 1 0 0 0 0.0 / - -\n", line: 2},
		{name: "a hard link without target", dump: rootLine + "/l 0 @100644 1 0 0 0 0.0 - - -\n", line: 2},
		{name: "a hard link to nothing", dump: rootLine + "/l 0 @100644 1 0 0 0 0.0 /x - -\n"},
		{name: "a hard link to itself", dump: rootLine + "/l 0 @100644 1 0 0 0 0.0 /l - -\n"},
		{name: "an xattr without =", dump: file("0 100644 1 0 0 0 0.0 - - - user.a"), line: 2},
		{name: "an xattr without a name", dump: file("0 100644 1 0 0 0 0.0 - - - =a"), line: 2},
		{name: "a long xattr name", dump: file("0 100644 1 0 0 0 0.0 - - - " + strings.Repeat("x", 256) + "=a"), line: 2},
		{name: "too many bytes of xattrs", dump: file("0 100644 1 0 0 0 0.0 - - - user.a=" + strings.Repeat("v", 32768)), line: 2},
		{name: "more than 2^53 bytes", dump: file("9007199254740993 100644 1 0 0 0 0.0 - - -"), line: 2},
		{
			name: "a hard link to a directory", dump: rootLine + "/l 0 @100644 1 0 0 0 0.0 / - -\n",
			stricter: "no file system has them",
		},
		{
			name: "an owner of 33 bits", dump: file("0 100644 1 4294967296 0 0 0.0 - - -"), line: 2,
			stricter: "it would be cut to 0, which is root",
		},
		{
			name: "a negative owner", dump: file("0 100644 1 -1 0 0 0.0 - - -"), line: 2,
			stricter: "it would be cut",
		},
		{
			name: "a second of nanoseconds", dump: file("0 100644 1 0 0 0 0.1000000000 - - -"), line: 2,
			stricter: "the kernel has no such time",
		},
		{
			name: "an escaped NUL in a name", dump: rootLine + `/a\x00b 0 100644 1 0 0 0 0.0 - - -` + "\n", line: 2,
			stricter: "the name would end there",
		},
		{
			name: "a short digest", dump: file("1 100644 1 0 0 0 0.0 - - abcd"), line: 2,
			stricter: "it would be filled with what is in memory",
		},
	} {
		_, err := ReadDump(strings.NewReader(tc.dump))
		var d *DumpError
		switch {
		case !errors.As(err, &d) || fault.KindOf(err) != fault.Corrupt:
			t.Errorf("%s: %v, want a DumpError of kind corrupt", tc.name, err)
		case d.Line != tc.line:
			t.Errorf("%s: the error names line %d, want %d: %v", tc.name, d.Line, tc.line, err)
		}
		if tc.stricter != "" {
			continue
		}
		if _, err := mkcomposefs(t, []byte(tc.dump)); err == nil {
			t.Errorf("%s: mkcomposefs takes it", tc.name)
		}
	}
}

func TestDumpLongLines(t *testing.T) {
	long := file64k()
	tree, err := ReadDump(strings.NewReader(rootLine + long))
	if err != nil {
		t.Fatal(err)
	}
	if got := dumpOf(t, tree); !strings.HasSuffix(got, long) {
		t.Error("a line longer than the buffer is not the same when written again")
	}
	_, err = ReadDump(strings.NewReader(rootLine + "/f " + strings.Repeat("0", maxDumpLine+100_000)))
	if fault.KindOf(err) != fault.Corrupt {
		t.Errorf("a line without end: %v", err)
	}
	broken := errors.New("broken")
	if _, err := ReadDump(readerFunc(func([]byte) (int, error) { return 0, broken })); !errors.Is(err, broken) {
		t.Errorf("a reader that fails: %v", err)
	}
}

// file64k is a dump line of more than 64 KiB.
func file64k() string {
	value := strings.Repeat(`\x01`, 15_000)
	return fmt.Sprintf("/f 5000 100644 1 0 0 0 0.0 - %s - user.a=%s\n", strings.Repeat(`\xff`, 5000), value)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func FuzzReadDump(f *testing.F) {
	f.Add([]byte(manual))
	f.Add([]byte(rootLine + "/w 0 20644 1 0 0 0 -5.999999999 - - -\n/z 5 @100644 1 0 0 0 0.0 /w - -\n"))
	for seed := range uint64(8) {
		var b bytes.Buffer
		if err := WriteDump(&b, randomTree(seed)); err != nil {
			f.Fatal(err)
		}
		if b.Len() < 20_000 {
			f.Add(b.Bytes())
		}
	}
	f.Fuzz(func(t *testing.T, dump []byte) {
		tree, err := ReadDump(bytes.NewReader(dump))
		if err != nil {
			return
		}
		once := dumpOf(t, tree)
		again, err := ReadDump(strings.NewReader(once))
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if twice := dumpOf(t, again); once != twice {
			t.Fatalf("written, read and written again:\n%s\n%s", once, twice)
		}
		var image bytes.Buffer
		if _, err := WriteImage(&image, tree, Default); err != nil {
			if !strings.Contains(err.Error(), "xattrs of") {
				t.Fatalf("a dump that cannot be written as an image: %v", err)
			}
			return
		}
		if _, _, err := ReadImage(image.Bytes()); err != nil {
			t.Fatalf("an image that cannot be read: %v", err)
		}
	})
}
