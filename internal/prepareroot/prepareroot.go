// Package prepareroot reads prepare-root.conf, by which an image tells its
// initramfs how to mount the root (ostree-prepare-root(1)). The file is read
// there: what is in the image tells what its initramfs was made with.
package prepareroot

import (
	"fmt"

	"github.com/kedge-os/kedge/pkg/boot/keyfile"
)

// File is the file's path in /etc and in /usr/lib. One in /etc replaces the
// other whole.
const File = "ostree/prepare-root.conf"

// Composefs is the value of [composefs] enabled.
type Composefs uint8

// What ostree-prepare-root does with the deployment's composefs image.
const (
	Off    Composefs = iota
	Maybe            // mount it where there is one
	On               // mount it
	Verity           // mount it, with fs-verity required of it and of every object
	Signed           // and require a signature over its digest
)

var states = map[string]Composefs{
	"no": Off, "false": Off, "0": Off, "maybe": Maybe, "yes": On, "true": On, "1": On, "verity": Verity, "signed": Signed,
}

// Config is what prepare-root.conf says.
type Config struct {
	Transient bool // [root] transient: an overlay on the root that a reboot empties
	Composefs Composefs
	// Invalid is a value of [composefs] enabled that means nothing. ostree-ext
	// takes it for Off, ostree-prepare-root refuses to boot.
	Invalid string
}

// Parse reads the file's text. What GLib refuses is an error of kind Corrupt.
func Parse(text string) (Config, error) {
	f, err := keyfile.Parse(text)
	if err != nil {
		return Config{}, fmt.Errorf("read prepare-root.conf: %w", err)
	}
	var c Config
	if v, ok := f.Get("root", "transient"); ok {
		c.Transient = v == "true" || v == "1"
	}
	if v, ok := f.Get("composefs", "enabled"); ok {
		if c.Composefs, ok = states[v]; !ok {
			c.Invalid = v
		}
	}
	return c, nil
}

// Overlay reports whether the root is an overlay of the deployment, so that
// top-level paths need no place in the deployment's directory.
func (c Config) Overlay() bool { return c.Transient || c.Composefs != Off }
