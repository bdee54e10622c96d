package loader

import (
	"context"
	"io/fs"
	"os"
)

// Lost is a loader whose file system cannot be opened: what is to be written
// there is an error, and what is to be read a problem.
type Lost struct {
	As  string
	Err error
}

// Name implements Loader.
func (l Lost) Name() string { return l.As }

// Root implements Loader.
func (Lost) Root() *os.Root { return nil }

// Lines implements Loader.
func (l Lost) Lines(Owner) ([]Line, []error, error) { return nil, nil, l.Err }

// Space implements Loader.
func (l Lost) Space([]Item) (need, free int64, err error) { return 0, 0, l.Err }

// Prepare implements Loader.
func (l Lost) Prepare(context.Context, []Item) error { return l.Err }

// Commit implements Loader.
func (l Lost) Commit(context.Context, Menu) error { return l.Err }

// Sweep implements Loader.
func (l Lost) Sweep(context.Context, Menu, func(string) bool) error { return l.Err }

// BlessedBy implements Loader.
func (Lost) BlessedBy() []string { return nil }

// Update implements Loader.
func (l Lost) Update(fs.FS) (bool, error) { return false, l.Err }

// Close implements Loader.
func (Lost) Close() {}
