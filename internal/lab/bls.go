package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// BootEntry is one Boot Loader Specification entry (type 1) as a boot loader
// reads it. Paths are relative to the file system that holds the entry.
type BootEntry struct {
	File    string // base name
	Title   string
	SortKey string
	Version string
	Linux   string
	Initrd  string
	Options string
	EFI     string // a program in place of a kernel
}

// DefaultEntry reads boot/loader/entries and returns the entry that a boot
// loader would start: the first sort-key, and of one sort-key the newest version,
// that has boot tries left; counted entries without tries last.
func DefaultEntry(boot string) (BootEntry, error) {
	entries, err := Entries(boot)
	if err != nil {
		return BootEntry{}, err
	}
	if len(entries) == 0 {
		return BootEntry{}, fmt.Errorf("no boot entry in %s/loader/entries", boot)
	}
	return entries[0], nil
}

// Entries returns the entries below boot in the order of a boot loader's menu.
func Entries(boot string) ([]BootEntry, error) {
	files, err := filepath.Glob(filepath.Join(boot, "loader/entries/*.conf"))
	if err != nil {
		return nil, err
	}
	var entries []BootEntry
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		e := parseEntry(string(b))
		e.File = filepath.Base(f)
		if e.Linux == "" && e.EFI == "" {
			return nil, errors.New(f + ": no kernel")
		}
		entries = append(entries, e)
	}
	slices.SortStableFunc(entries, menuOrder)
	return entries, nil
}

func parseEntry(text string) BootEntry {
	var e BootEntry
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		value = strings.TrimSpace(value)
		switch key {
		case "title":
			e.Title = value
		case "sort-key":
			e.SortKey = value
		case "version":
			e.Version = value
		case "linux":
			e.Linux = value
		case "initrd":
			e.Initrd = value
		case "efi", "uki":
			e.EFI = value
		case "options":
			e.Options = strings.TrimSpace(e.Options + " " + value)
		}
	}
	return e
}

var noTriesLeft = regexp.MustCompile(`\+0(-\d+)?\.conf$`)

func menuOrder(a, b BootEntry) int {
	aBad, bBad := noTriesLeft.MatchString(a.File), noTriesLeft.MatchString(b.File)
	if aBad != bBad {
		if aBad {
			return 1
		}
		return -1
	}
	// Those with a sort-key come before the others.
	if (a.SortKey == "") != (b.SortKey == "") {
		return strings.Compare(b.SortKey, a.SortKey)
	}
	if a.SortKey != b.SortKey {
		return strings.Compare(a.SortKey, b.SortKey)
	}
	av, aErr := strconv.Atoi(a.Version)
	bv, bErr := strconv.Atoi(b.Version)
	if aErr == nil && bErr == nil && av != bv {
		return bv - av
	}
	return strings.Compare(b.File, a.File)
}
