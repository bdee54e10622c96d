package fsverity

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
)

// plainVerity is fs-verity as its documentation tells it, level by level over
// the whole file.
func plainVerity(alg Algorithm, data []byte) Digest {
	root := make([]byte, alg.Size())
	if len(data) > 0 {
		level := data
		for {
			var next []byte
			for len(level) > 0 {
				var block [verityBlock]byte
				level = level[copy(block[:], level):]
				next = alg.appendSum(next, block[:])
			}
			if len(next) == alg.Size() {
				root = next
				break
			}
			level = next
		}
	}
	var desc [descriptorSize]byte
	desc[0], desc[1], desc[2] = 1, byte(alg), verityLog2
	binary.LittleEndian.PutUint64(desc[8:], uint64(len(data)))
	copy(desc[16:], root)
	return Digest(alg.appendSum(nil, desc[:]))
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func TestDigest(t *testing.T) {
	for _, alg := range []Algorithm{SHA256, SHA512} {
		perBlock := verityBlock / alg.Size()
		part := perBlock * verityBlock
		v := New(alg)
		for _, size := range []int{
			0, 1, 4095, 4096, 4097, 2 * 4096, part - 1, part, part + 1, part + 4096, 3 * part, 3*part + 5,
			parallelFrom, parallelFrom + 4097, perBlock * part, perBlock*part + 1,
		} {
			data := randomBytes(size)
			want := plainVerity(alg, data)
			v.Reset()
			for rest := data; len(rest) > 0; {
				n := min(len(rest), 1+rand.IntN(70_000))
				_, _ = v.Write(rest[:n])
				rest = rest[n:]
			}
			if got := v.Sum(); got != want {
				t.Errorf("%v of %d bytes as a stream: %s, want %s", alg, size, got, want)
			}
			got, err := Of(t.Context(), bytes.NewReader(data), int64(size), alg)
			if err != nil || got != want {
				t.Errorf("%v of %d bytes as a file: %s and %v, want %s", alg, size, got, err, want)
			}
		}
	}
}

func TestOfFails(t *testing.T) {
	data := make([]byte, 2*parallelFrom)
	if _, err := Of(t.Context(), bytes.NewReader(data), int64(len(data))+1<<21, SHA256); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that is shorter than told: %v, want an unexpected EOF", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Of(ctx, bytes.NewReader(data), int64(len(data)), SHA256); !errors.Is(err, context.Canceled) {
		t.Errorf("with a cancelled context: %v", err)
	}
}

func TestParseDigest(t *testing.T) {
	for _, s := range []string{"", "zz", strings.Repeat("a", 63), strings.Repeat("a", 66), strings.Repeat("g", 64)} {
		if _, err := ParseDigest(s); fault.KindOf(err) != fault.Usage {
			t.Errorf("%q: %v, want an error of kind usage", s, err)
		}
	}
	for _, s := range []string{strings.Repeat("0a", 32), strings.Repeat("0b", 64)} {
		if d, err := ParseDigest(s); err != nil || d.String() != s {
			t.Errorf("%q: %v and %v", s, d, err)
		}
	}
}

// TestSeal enables verity where the file system of the temporary directory has
// it, and wants the typed refusal where it has not.
func TestSeal(t *testing.T) {
	dir, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	d, err := CreateSealed(dir, "object", 0o644, SHA256, func(w io.Writer) error {
		_, err := io.WriteString(w, "hello world")
		return err
	})
	if errors.Is(err, ErrNoVerity) {
		if fault.KindOf(err) != fault.Conflict || fault.HintOf(err) == "" {
			t.Errorf("the refusal has kind %v and hint %q", fault.KindOf(err), fault.HintOf(err))
		}
		if _, err := dir.Stat("object"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the refused file is still there: %v", err)
		}
		if err := dir.WriteFile("plain", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := dir.Open("plain")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := Measure(f); !errors.Is(err, ErrNoVerity) && !errors.Is(err, ErrNotSealed) {
			t.Errorf("measured without verity: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(d.String(), "1e2eaa42") {
		t.Errorf("measured %s", d)
	}
}

func TestCreateSealedKeepsWhatIsThere(t *testing.T) {
	dir, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := dir.WriteFile("object", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateSealed(dir, "object", 0o644, SHA256, func(io.Writer) error { return nil }); !errors.Is(err, os.ErrExist) {
		t.Errorf("over a file: %v, want an error that it exists", err)
	}
	if b, err := dir.ReadFile("object"); err != nil || string(b) != "x" {
		t.Errorf("the file that was there holds %q, %v", b, err)
	}
	broken := errors.New("broken")
	if _, err := CreateSealed(dir, "other", 0o644, SHA256, func(io.Writer) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("with a failing writer: %v", err)
	}
	if _, err := dir.Stat("other"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unfinished file is still there: %v", err)
	}
}

// TestNoWriterUnderForks makes files while other goroutines start processes.
// When the file is sealed nobody may have it open for writing; a read lease,
// which the kernel grants by the same count of writers that fs-verity looks at,
// tells.
func TestNoWriterUnderForks(t *testing.T) {
	dir, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	stop := make(chan struct{})
	var forks sync.WaitGroup
	started := 0
	for i := range 4 {
		forks.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					if i == 0 {
						started = n
					}
					return
				default:
					if err := exec.Command("/bin/true").Run(); err != nil {
						t.Errorf("start a process: %v", err)
						return
					}
				}
			}
		})
	}
	const files = 300
	for i := range files {
		err := createQuiet(dir, fmt.Sprint(i), 0o600, func(w io.Writer) error {
			_, err := w.Write(make([]byte, 10_000))
			return err
		}, func(f *os.File) error {
			if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
				return fmt.Errorf("somebody has the file open for writing: %w", err)
			}
			_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
			return err
		})
		if err != nil {
			t.Errorf("file %d: %v", i, err)
		}
	}
	close(stop)
	forks.Wait()
	if started == 0 {
		t.Error("no process was started meanwhile")
	}
}
