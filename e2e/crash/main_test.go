package crash

import (
	"os"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
)

// scratch is the size of the disk in bytes. A sysroot has 10 MB; the rest is for
// a Go that builds kedge.
const scratch = 2 << 30

// TestMain puts the sysroots in memory: hundreds of runs that sync a disk would
// wait for it, and a kill loses nothing that is in the page cache.
func TestMain(m *testing.M) { os.Exit(lab.InMemory(m, scratch)) }
