package fault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"
)

func TestKindOf(t *testing.T) {
	for _, tc := range []struct {
		err  error
		kind Kind
		code int
	}{
		{errors.New("x"), Internal, 1},
		{New(Usage, "", "x"), Usage, 2},
		{fmt.Errorf("a: %w", New(NotFound, "", "x")), NotFound, 3},
		{New(Conflict, "", "a: %w", New(NotFound, "", "x")), Conflict, 4},
		{context.DeadlineExceeded, Unavailable, 5},
		{New(Corrupt, "", "write: %w", syscall.ENOSPC), NoSpace, 6},
		{New(Untrusted, "", "x"), Untrusted, 7},
		{New(Corrupt, "", "x"), Corrupt, 8},
		{New(Busy, "", "x"), Busy, 9},
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.EACCES}, Denied, 10},
		{fmt.Errorf("write: %w", syscall.EROFS), Denied, 10},
		{fmt.Errorf("read: %w", syscall.EIO), IO, 11},
		{New(Held, "", "x"), Held, 12},
		{New(Scriptlet, "", "x"), Scriptlet, 13},
		{New(Unchanged, "", "x"), Unchanged, 77},
		{fmt.Errorf("fetch: %w", New(Unavailable, "", "x: %w", context.Canceled)), Interrupted, 130},
	} {
		k := KindOf(tc.err)
		if k != tc.kind || k.ExitCode() != tc.code {
			t.Errorf("%v: kind %q with exit code %d, want %q with %d", tc.err, k, k.ExitCode(), tc.kind, tc.code)
		}
	}
	if KindOf(nil) != 0 {
		t.Error("no error has a kind")
	}
}

func TestHintOf(t *testing.T) {
	inner := New(NotFound, "look here", "x")
	if h := HintOf(New(Conflict, "", "a: %w", inner)); h != "look here" {
		t.Errorf("hint %q, want that of the wrapped error", h)
	}
	if h := HintOf(New(Conflict, "do this", "a: %w", inner)); h != "do this" {
		t.Errorf("hint %q, want the outermost", h)
	}
	if HintOf(syscall.ENOSPC) == "" {
		t.Error("a full disk has no hint")
	}
}
