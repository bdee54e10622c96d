package host

import (
	"os"
	"testing"

	"go.podman.io/storage/pkg/reexec"

	"github.com/kedge-os/kedge/internal/lab"
)

// TestMain puts the sysroots in memory: some have packages of a whole
// distribution. containers-storage runs this program again to unpack a layer.
func TestMain(m *testing.M) {
	if reexec.Init() {
		return
	}
	os.Exit(lab.InMemory(m, 6<<30))
}
