package composefs

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fsverity"
)

var update = flag.Bool("update", false, "write testdata/digests.json from what mkcomposefs says")

const digestsFile = "testdata/digests.json"

// treeFiles returns the dumps of testdata/trees by their names: limits of the
// format, and every tree that once came out wrong.
func treeFiles(t testing.TB) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob("testdata/trees/*.dump")
	if err != nil || len(names) == 0 {
		t.Fatalf("no trees in testdata: %v", err)
	}
	trees := make(map[string][]byte)
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		trees[strings.TrimSuffix(filepath.Base(name), ".dump")] = b
	}
	return trees
}

// TestTrees compares the digests of the trees in testdata with those that
// mkcomposefs gave them, for machines that do not have it.
func TestTrees(t *testing.T) {
	want := make(map[string]map[string]string)
	if !*update {
		b, err := os.ReadFile(digestsFile)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatal(err)
		}
	}
	for name, dump := range treeFiles(t) {
		tree, err := ReadDump(bytes.NewReader(dump))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if *update {
			want[name] = make(map[string]string)
			for _, f := range formats {
				image, err := mkcomposefs(t, dump, f.args...)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				want[name][f.name] = digestOf(SHA256, image).String()
			}
		}
		for _, f := range formats {
			var b bytes.Buffer
			info, err := WriteImage(&b, tree, f.o)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if info.Digest.String() != want[name][f.name] {
				t.Errorf("%s: the %s image has digest %s, want %s", name, f.name, info.Digest, want[name][f.name])
			}
			if d := digestOf(SHA256, b.Bytes()); d != info.Digest || info.Size != int64(b.Len()) {
				t.Errorf("%s: WriteImage says %s and %d bytes, the image has %s and %d", name, info.Digest, info.Size, d, b.Len())
			}
		}
	}
	if *update {
		b, err := json.MarshalIndent(want, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(digestsFile, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOracleTrees compares the trees in testdata byte for byte.
func TestOracleTrees(t *testing.T) {
	for name, dump := range treeFiles(t) {
		t.Run(name, func(t *testing.T) {
			if !sameAsOracle(t, dump) {
				t.Errorf("mkcomposefs refuses the tree")
			}
		})
	}
}

// TestOracleReadsDumps compares what composefs-info tells of an image with what
// we read from it. It takes any entry of a hard link for the first, and loses
// or leaks xattrs where there are whiteouts.
func TestOracleReadsDumps(t *testing.T) {
	for name, dump := range treeFiles(t) {
		tree, err := ReadDump(bytes.NewReader(dump))
		if err != nil {
			t.Fatal(err)
		}
		if name == "whiteouts" {
			continue
		}
		image := writeImageOf(t, tree, V0)
		file := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(file, image, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := oracle(t, "composefs-info", "dump", file).Output()
		if err != nil {
			t.Errorf("%s: composefs-info refuses the image: %v", name, err)
			continue
		}
		theirs, err := ReadDump(bytes.NewReader(out))
		if err != nil {
			t.Errorf("%s: composefs-info's dump: %v", name, err)
			continue
		}
		ours, _, err := ReadImage(image)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		err = Diff(theirs, ours, func(c Change) error {
			if slices.Equal(c.Fields, []string{"link"}) {
				return nil
			}
			t.Errorf("%s: %s: composefs-info and we differ in %v", name, c.Path, c.Fields)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// TestOracleDirectory reads the image that mkcomposefs makes of a real
// directory, compares the digests in it with those of the files, and writes the
// same image again.
func TestOracleDirectory(t *testing.T) {
	root, err := oracleRoot()
	if err != nil {
		oracle(t, "mkcomposefs") // skips
	}
	want, err := oracle(t, "mkcomposefs", root+"/usr", "-").Output()
	if err != nil {
		t.Fatalf("mkcomposefs: %v", err)
	}
	tree, _, err := ReadImage(want)
	if err != nil {
		t.Fatal(err)
	}
	if got := writeImageOf(t, tree, Default); !bytes.Equal(got, want) {
		t.Error(firstDifference(got, want))
	}
	again, err := ReadDump(strings.NewReader(dumpOf(t, tree)))
	if err != nil {
		t.Fatal(err)
	}
	if got := writeImageOf(t, again, Default); !bytes.Equal(got, want) {
		t.Errorf("through a dump: %s", firstDifference(got, want))
	}
	files := 0
	err = tree.Walk(func(path string, e Dirent) error {
		if !e.Inode.External() {
			return nil
		}
		files++
		f, err := os.Open(root + "/usr" + path)
		if err != nil {
			return err
		}
		defer f.Close()
		d, err := fsverity.Of(t.Context(), f, int64(e.Inode.Size), SHA256)
		if err == nil && (d != e.Inode.Digest || Object(d).Payload != e.Inode.Payload) {
			t.Errorf("%s has digest %s, mkcomposefs says %s and %s", path, d, e.Inode.Digest, e.Inode.Payload)
		}
		return err
	})
	if err != nil || files == 0 {
		t.Errorf("%d files, %v", files, err)
	}
	t.Logf("%d files", files)
}

// TestWriteImageWith writes images by means of the real program.
func TestWriteImageWith(t *testing.T) {
	cmd := oracle(t, "mkcomposefs")
	program := filepath.Join(t.TempDir(), "mkcomposefs")
	script := "#!/bin/sh\nexec " + strings.Join(cmd.Args, " ") + ` "$@"` + "\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	tree, err := ReadDump(bytes.NewReader(treeFiles(t)["whiteouts"]))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range formats {
		var got bytes.Buffer
		info, err := WriteImageWith(t.Context(), program, &got, tree, f.o)
		if err != nil {
			t.Errorf("%s: %v", f.name, err)
			continue
		}
		if want := writeImageOf(t, tree, f.o); !bytes.Equal(got.Bytes(), want) || info.Digest != digestOf(SHA256, want) {
			t.Errorf("%s: %s", f.name, firstDifference(got.Bytes(), want))
		}
	}
	if _, err := WriteImageWith(t.Context(), "mkcomposefs-is-not-here", io.Discard, tree, V1); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a program that is missing: %v", err)
	}
	tree.Root.Lookup("top").Digest = Digest(strings.Repeat("d", 64))
	if _, err := WriteImageWith(t.Context(), program, io.Discard, tree, V1); fault.KindOf(err) != fault.Usage {
		t.Errorf("a sha512 digest: %v", err)
	}
}
