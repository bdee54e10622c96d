// Package assess judges a boot. It runs the checks that an image and its admin
// bring, bounded in time and output, and keeps what came of them: how each root
// booted last, which roots are held back, and who rolled back when.
//
// It never decides what boots: systemd-bless-boot blesses the entry when
// boot-complete.target is reached, the boot loader counts, and package host
// reads the records here. The records are one file, replaced as a whole; the
// rename is the commit point of every change.
package assess

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"

	v1 "github.com/kedge-os/kedge/api/v1"
)

// Same reports whether two roots are made of the same.
func Same(a, b v1.Identity) bool {
	return a.Image == b.Image && a.Packages == b.Packages && a.Initramfs == b.Initramfs && slices.Equal(a.Kargs, b.Kargs)
}

// Key returns the short name of a root.
func Key(i v1.Identity) string {
	i.Kargs = append([]string{}, i.Kargs...)
	text, err := json.Marshal(i)
	if err != nil {
		panic(err) // strings always encode
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:6])
}
