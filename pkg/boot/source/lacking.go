package source

import (
	"errors"
	"io/fs"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Lacking is the error of opening the /etc of a deployment: one that is not there is
// a damaged deployment, and no other one can be made from it.
func Lacking(deployment string, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fault.New(fault.Corrupt, "restore it from a backup, or make another deployment the default: kedge rollback, kedge deploy INDEX",
		"deployment %s has no /etc to go on with: %w", deployment, err)
}
