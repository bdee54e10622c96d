// Package uki reads unified kernel images: EFI programs with a kernel, its
// initrd and its command line as sections (https://uapi-group.org/specifications/
// specs/unified_kernel_image), and makes them of one another, signed for Secure
// Boot. It trusts nothing of what it reads.
package uki

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/kedge-os/kedge/internal/pefile"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// Dir is where an image has its unified kernel image: outside of what the
// composefs= argument in it names.
const Dir = "boot/EFI/Linux"

// Suffix ends the names of unified kernel images, addonSuffix those of addons to
// them.
const (
	Suffix      = ".efi"
	addonSuffix = ".addon.efi"
)

// maxText bounds the sections that are text.
const maxText = 64 << 10

// Image is a unified kernel image.
type Image struct {
	Cmdline   karg.Args
	Version   string // of the kernel, "" where it is not told
	OSRelease string // in the form of os-release(5)
	// SBAT is by what Secure Boot revokes it, "" where it is not told.
	SBAT string

	linux, initrd *io.SectionReader
}

// Decode reads an image of size bytes. What is none, or has several profiles of
// which each may boot something else, is a Conflict.
func Decode(r io.ReaderAt, size int64) (*Image, error) {
	sections, err := pefile.Sections(r, size)
	if err != nil {
		return nil, unusable("%w", err)
	}
	part := map[string]*io.SectionReader{}
	for _, s := range sections {
		switch s.Name {
		case ".linux", ".initrd", ".cmdline", ".uname", ".osrel", ".sbat", ".profile":
			if part[s.Name] != nil {
				return nil, unusable("it has two sections %s", s.Name)
			}
			part[s.Name] = io.NewSectionReader(r, s.Offset, s.Size)
		}
	}
	if part[".profile"] != nil {
		return nil, unusable("it has profiles")
	}
	for _, name := range []string{".linux", ".initrd", ".cmdline"} {
		if part[name] == nil || part[name].Size() == 0 {
			return nil, unusable("it has no section %s", name)
		}
	}
	u := &Image{linux: part[".linux"], initrd: part[".initrd"]}
	cmdline := ""
	for name, to := range map[string]*string{".cmdline": &cmdline, ".uname": &u.Version, ".osrel": &u.OSRelease, ".sbat": &u.SBAT} {
		if *to, err = text(part[name]); err != nil {
			return nil, unusable("its section %s %w", name, err)
		}
	}
	u.Cmdline = karg.Parse(cmdline)
	return u, nil
}

func unusable(format string, args ...any) error {
	return fault.New(fault.Conflict, "rebuild the image with ukify, or bootc container ukify", "the unified kernel image cannot be used: %w", fmt.Errorf(format, args...))
}

// text reads a section of text; "" for one that is not there.
func text(r *io.SectionReader) (string, error) {
	if r == nil {
		return "", nil
	}
	if r.Size() > maxText {
		return "", fmt.Errorf("has %d bytes, more than %d", r.Size(), maxText)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return "", fmt.Errorf("cannot be read: %w", err)
	}
	data = bytes.TrimRight(data, "\x00")
	if !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0 {
		return "", fmt.Errorf("is not text")
	}
	return strings.TrimSpace(string(data)), nil
}

// BootDigest returns the sha256 of kernel and initrd one after the other, hex: by
// what bootc tells whether two images boot the same.
func (u *Image) BootDigest() (string, error) {
	h := sha256.New()
	for _, part := range []*io.SectionReader{u.linux, u.initrd} {
		if _, err := io.Copy(h, io.NewSectionReader(part, 0, part.Size())); err != nil {
			return "", fmt.Errorf("checksum the unified kernel image: %w", err)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Find returns the unified kernel image in the tree of an image, nil for none.
// Two, and one that is no regular file, are a Conflict. Addons are none.
func Find(t *fstree.Tree) (*fstree.Inode, error) {
	dir := t.Resolve(Dir)
	if dir == nil || !dir.IsDir() {
		return nil, nil
	}
	entries := slices.DeleteFunc(slices.Clone(dir.Entries()), func(e fstree.Dirent) bool {
		return e.Inode.IsDir() || !strings.HasSuffix(e.Name, Suffix) || strings.HasSuffix(e.Name, addonSuffix)
	})
	switch {
	case len(entries) == 0:
		return nil, nil
	case len(entries) > 1:
		return nil, fault.New(fault.Conflict, "an image must hold one unified kernel image: remove the others in /"+Dir,
			"the image has %d unified kernel images, %s and %s among them", len(entries), entries[0].Name, entries[1].Name)
	case !entries[0].Inode.IsRegular():
		return nil, fault.New(fault.Conflict, "rebuild the image so that it is a file", "/%s/%s is not a regular file", Dir, entries[0].Name)
	}
	return entries[0].Inode, nil
}
