#include "launcher/migration.h"

#include <fmt/format.h>
#include <unistd.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value_to.hpp>
#include <chrono>

#include "launcher/failure.h"
#include "launcher/json_text.h"

namespace qvm {

namespace asio = boost::asio;
namespace json = boost::json;
using asio::awaitable;
using namespace std::chrono_literals;

namespace {

constexpr auto command_timeout = 10s;
constexpr auto end_pause = 1ms;  // between two questions whether a migration that is over is done
constexpr const char* state_fd = "state";

json::object named(const char* key, json::value value) {
    json::object object;
    object[key] = std::move(value);
    return object;
}

json::array capabilities(bool shared) {
    const auto one = [](const char* name, bool state) {
        json::object capability{{"capability", name}};
        capability["state"] = state;
        return capability;
    };
    json::array all;
    all.push_back(one("x-ignore-shared", shared));
    all.push_back(one("events", true));
    return all;
}

/// qapi/machine-target.json, X86CPUFeatureWordInfo
json::array features_of(const json::value& words) {
    json::array features;
    if (!words.is_array()) return features;
    for (const auto& word : words.get_array()) {
        const auto* object = word.if_object();
        const auto* leaf = object == nullptr ? nullptr : object->if_contains("cpuid-input-eax");
        const auto* sub = object == nullptr ? nullptr : object->if_contains("cpuid-input-ecx");
        const auto* bits = object == nullptr ? nullptr : object->if_contains("features");
        if (leaf == nullptr || bits == nullptr) continue;
        features.push_back(
            json::object{{"cpuid", fmt::format("{:x}.{}.{}", leaf->to_number<std::uint64_t>(),
                                               sub == nullptr ? 0 : sub->to_number<std::uint64_t>(),
                                               text_in(word, "cpuid-register"))},
                         {"features", bits->to_number<std::uint64_t>()}});
    }
    return features;
}

/// "7.2.22" as numbers that compare.
std::vector<int> numbers_of(const std::string& version) {
    std::vector<int> numbers;
    int number = 0;
    for (const char c : version + '.') {
        if (c >= '0' && c <= '9')
            number = 10 * number + (c - '0');
        else
            numbers.push_back(std::exchange(number, 0));
    }
    return numbers;
}

std::string first_difference(const json::array& saved, const json::array& here) {
    for (std::size_t i = 0; i < saved.size() && i < here.size(); ++i)
        if (saved[i] != here[i])
            return fmt::format("CPUID {} was {:#010x}, and is {:#010x}", text_in(saved[i], "cpuid"),
                               saved[i].at("features").to_number<std::uint64_t>(),
                               here[i].at("features").to_number<std::uint64_t>());
    return "QEMU tells another number of CPUID words";
}

}  // namespace

std::string misfit(const MachineFacts& saved, const MachineFacts& here) {
    if (numbers_of(here.qemu) < numbers_of(saved.qemu))
        return fmt::format("it needs QEMU {}, and this is {}", saved.qemu, here.qemu);
    if (here.machine != saved.machine)
        return fmt::format("its machine is {}, and this QEMU has made {}", saved.machine,
                           here.machine);
    if (here.cpu != saved.cpu)
        return "its CPU had other features: " + first_difference(saved.cpu, here.cpu);
    return "";
}

Migration::Migration(const asio::any_io_executor& executor, qmp::Client& monitor,
                     std::chrono::milliseconds patience)
    : monitor_(monitor), news_(executor), patience_(patience) {}

awaitable<MachineFacts> Migration::facts() {
    MachineFacts facts;
    if (const auto& greeting = monitor_.greeting())
        facts.qemu = fmt::format("{}.{}.{}", greeting->major, greeting->minor, greeting->micro);
    auto where = named("path", "/machine");
    where["property"] = "type";
    const auto type = co_await monitor_.execute("qom-get", std::move(where), command_timeout);
    constexpr std::string_view suffix = "-machine";
    if (type.is_string()) facts.machine = std::string{type.get_string()};
    if (facts.machine.ends_with(suffix)) facts.machine.resize(facts.machine.size() - suffix.size());
    const auto cpus = co_await monitor_.execute("query-cpus-fast", {}, command_timeout);
    if (!cpus.is_array() || cpus.get_array().empty()) throw Failure("QEMU tells of no CPU");
    auto of_cpu = named("path", text_in(cpus.get_array().front(), "qom-path").c_str());
    of_cpu["property"] = "feature-words";
    const auto words = co_await monitor_.execute("qom-get", std::move(of_cpu), command_timeout);
    facts.cpu = features_of(words);
    co_return facts;
}

awaitable<void> Migration::set_up(bool shared) {
    auto arguments = named("capabilities", capabilities(shared));
    co_await monitor_.execute("migrate-set-capabilities", std::move(arguments), command_timeout);
    auto bandwidth = named("max-bandwidth", std::uint64_t{1} << 40);  // bytes/s: as fast as it can
    co_await monitor_.execute("migrate-set-parameters", std::move(bandwidth), command_timeout);
}

awaitable<void> Migration::move(int fd, bool shared, const char* command) {
    co_await set_up(shared);
    auto name = named("fdname", state_fd);
    co_await monitor_.execute("getfd", std::move(name), fd, command_timeout);
    status_.clear();
    auto where = named("uri", fmt::format("fd:{}", state_fd).c_str());
    co_await monitor_.execute(command, std::move(where), command_timeout);
    off_t moved = 0;
    while (status_ != "completed" && status_ != "failed" && !closed_) {
        news_.expires_after(patience_);
        const auto [woken] = co_await news_.async_wait(asio::as_tuple(asio::use_awaitable));
        if (woken) continue;  // it has told something
        // QEMU's descriptor and ours are one open file.
        const auto before = std::exchange(moved, ::lseek(fd, 0, SEEK_CUR));
        if (moved != before) continue;
        co_await monitor_.execute("migrate_cancel", {}, command_timeout);
        throw Failure(fmt::format("QEMU's {} gets no further", command));
    }
    if (status_ == "completed") co_return;
    if (closed_) throw Failure("QEMU is gone");
    const auto answer = co_await monitor_.execute("query-migrate", {}, command_timeout);
    const auto why = text_in(answer, "error-desc");
    throw Failure(why.empty() ? fmt::format("QEMU's {} failed", command) : why);
}

awaitable<void> Migration::save(int fd, bool shared) {
    std::exception_ptr failure;
    try {
        co_await move(fd, shared, "migrate");
    } catch (const std::exception&) {
        failure = std::current_exception();
    }
    try {
        co_await until_it_can_go_on();
    } catch (const std::exception&) {
        if (!failure) failure = std::current_exception();
    }
    if (failure) std::rethrow_exception(failure);
}

awaitable<void> Migration::until_it_can_go_on() {
    // It says so before the machine's own state is that, and refuses to go on until it is
    // (migration/migration.c: migration_iteration_finish).
    const auto deadline = std::chrono::steady_clock::now() + command_timeout;
    for (;;) {
        const auto answer = co_await monitor_.execute("query-status", {}, command_timeout);
        if (text_in(answer, "status") != "finish-migrate") co_return;
        if (std::chrono::steady_clock::now() > deadline)
            throw Failure("QEMU does not come to the end of its migration");
        news_.expires_after(end_pause);
        co_await news_.async_wait(asio::as_tuple(asio::use_awaitable));
    }
}

awaitable<void> Migration::load(int fd, bool shared) {
    return move(fd, shared, "migrate-incoming");
}

void Migration::take_status(const qmp::Event& event) {
    status_ = text_in(event.data, "status");
    news_.cancel();
}

void Migration::close() {
    closed_ = true;
    news_.cancel();
}

}  // namespace qvm
