package uki

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/kedge-os/kedge/internal/pefile"
	"github.com/kedge-os/kedge/pkg/boot/karg"
	"github.com/kedge-os/kedge/pkg/fault"
)

// Parts are what is to be different in a unified kernel image that is made of
// another one.
type Parts struct {
	Cmdline karg.Args
	// Linux and Initrd replace those that are there, nil: they stay. Version is
	// that of Linux.
	Linux, Initrd *io.SectionReader
	Version       string
}

// Signer signs unified kernel images; see Config.NewSigner.
type Signer = pefile.Signer

// payload are the sections that systemd's stub finds by their names and does not
// run with: they can be anywhere in memory.
var payload = []string{
	".linux", ".initrd", ".cmdline", ".osrel", ".uname", ".splash", ".dtb", ".dtbauto", ".hwids", ".ucode", ".efifw", ".pcrsig", ".pcrpkey",
}

// pcrSections vouch for what a TPM will have measured of the other sections.
var pcrSections = []string{".pcrsig", ".pcrpkey"}

// Make writes the unified kernel image that base, of size bytes, becomes with other
// parts, and signs it. Everything else in it stays: the stub, and what revokes it
// (.sbat). Signatures of PCR values go: they are of the other command line; dropped
// says whether there were any. One base, key, certificate and parts always give the
// same bytes.
func Make(w io.Writer, base io.ReaderAt, size int64, parts Parts, s Signer) (dropped bool, err error) {
	if _, err := Decode(base, size); err != nil {
		return false, err
	}
	p, err := pefile.Parse(base, size)
	if err != nil {
		return false, unusable("%w", err)
	}
	cmdline := parts.Cmdline.String()
	if len(cmdline) > maxText || strings.Contains(cmdline, "\x00") {
		return false, fault.New(fault.Conflict, "", "the kernel arguments do not fit into a unified kernel image")
	}
	var sections []pefile.Payload
	for _, section := range p.Sections {
		one := pefile.Payload{Name: section.Name, Data: p.Open(section)}
		switch {
		case !slices.Contains(payload, section.Name):
			continue
		case slices.Contains(pcrSections, section.Name):
			dropped = true
			continue
		case section.Name == ".cmdline":
			one.Data = textSection(cmdline)
		case section.Name == ".initrd" && parts.Initrd != nil:
			one.Data = parts.Initrd
		case section.Name == ".linux" && parts.Linux != nil:
			one.Data = parts.Linux
		case section.Name == ".uname" && parts.Linux != nil:
			one.Data = textSection(parts.Version)
		}
		if section.Name == ".linux" {
			// A stub may start it where it is loaded.
			one.Memory = pefile.MemorySize(one.Data)
		}
		sections = append(sections, one)
	}
	d, err := p.Rebuild(func(name string) bool { return !slices.Contains(payload, name) }, sections)
	if err != nil {
		return false, unusable("%w", err)
	}
	if _, err := d.WriteSigned(w, s); err != nil {
		return false, fmt.Errorf("write the unified kernel image: %w", err)
	}
	return dropped, nil
}

func textSection(text string) *io.SectionReader {
	return io.NewSectionReader(strings.NewReader(text), 0, int64(len(text)))
}
