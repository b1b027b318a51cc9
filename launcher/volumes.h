#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <filesystem>
#include <functional>
#include <list>
#include <string>
#include <vector>

#include "launcher/last_words.h"
#include "launcher/values.h"
#include "netns/unique_fd.h"
#include "qmp/client.h"

/// Directories of the host in the guest, by virtiofs: for each a virtiofsd, which sees nothing else
/// of the host, and a mount in the guest.
namespace qvm {

/// The tag by which the guest mounts a VM's volume of that number. Pure.
std::string volume_tag(std::size_t number);

/// The command that mounts the volumes in the guest, those that are not mounted yet; a directory
/// comes before what is below it. Devices that were plugged in by now are waited for. Pure.
std::vector<std::string> mount_command(const std::vector<VolumeOption>& volumes,
                                       bool plugged = false);

/// virtiofsd's command, with its listening socket as descriptor `socket`. Pure.
std::vector<std::string> virtiofsd_command(const std::string& program, const VolumeOption& volume,
                                           int socket);

/// The volume with the directory itself that is meant, whatever links led there. Throws Failure for
/// one that cannot be shared.
VolumeOption resolve_volume(VolumeOption volume);

class Volumes {
  public:
    static constexpr std::size_t most_plugged = 8;  ///< the functions of a PCI device

    /// `died` is told of a virtiofsd that ended. It must outlive this object, and the executor runs
    /// no more when this object goes.
    Volumes(const boost::asio::any_io_executor& executor, std::vector<VolumeOption> volumes,
            Report debug, std::function<void(const std::string&)> died);

    /// Starts a virtiofsd for each, which QEMU reaches by the sockets that are returned, in order.
    /// `directory`: for a moment, of their other ends' names. Throws Failure.
    std::vector<UniqueFd> start(const std::filesystem::path& directory);
    /// Plugs them into a machine that runs already, or goes on with a saved state: `sockets` are
    /// start()'s, most_plugged at most. Throws what qmp::Client does.
    boost::asio::awaitable<void> plug_in(qmp::Client& monitor, std::vector<UniqueFd> sockets);
    /// Mounts them in the guest, by its agent. Throws Failure with the guest's reason.
    boost::asio::awaitable<void> mount(qmp::Client& agent);
    /// How one of them has ended; empty where none has.
    [[nodiscard]] std::string trouble() const;

  private:
    struct Daemon {
        Daemon(const boost::asio::any_io_executor& executor, const VolumeOption& volume_)
            : volume(volume_), process(executor) {}
        VolumeOption volume;
        Process process;
        std::string end;  ///< how it did; empty while it has not
    };
    UniqueFd start(Daemon& daemon, const std::string& program,
                   const std::filesystem::path& directory);
    boost::asio::awaitable<void> watch(Daemon& daemon);

    boost::asio::any_io_executor executor_;
    std::vector<VolumeOption> volumes_;
    Report debug_;
    std::function<void(const std::string&)> died_;
    std::list<Daemon> daemons_;
    bool plugged_ = false;  ///< the guest may not know of the devices yet
};

}  // namespace qvm
