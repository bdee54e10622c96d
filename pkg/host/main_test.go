package host

import (
	"os"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
)

// TestMain puts the sysroots in memory: some have packages of a whole
// distribution.
func TestMain(m *testing.M) { os.Exit(lab.InMemory(m, 6<<30)) }
