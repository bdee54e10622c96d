package imageroot

import (
	"strings"

	"github.com/kedge-os/kedge/pkg/boot/bls"
)

// entryOf makes an entry of "ID=…; VERSION=…".
func entryOf(s string) *bls.Entry {
	id, version, _ := strings.Cut(s, "; VERSION=")
	e := &bls.Entry{}
	e.Set("version", version)
	e.Set("sort-key", sortKeyPrefix+strings.TrimPrefix(id, "ID=")+"-0")
	return e
}
