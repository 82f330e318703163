# A Rails application in one file.
require "rails"
require "active_model/railtie"
require "active_job/railtie"
require "active_record/railtie"
require "action_controller/railtie"
require "action_mailer/railtie"
require "action_view/railtie"
require "action_cable/engine"

class Application < Rails::Application
  config.root = __dir__
  config.eager_load = true
  config.consider_all_requests_local = false
  config.secret_key_base = "only for tests"
  config.logger = Logger.new($stdout)
  config.hosts.clear
  routes.append { root to: "greetings#show" }
end

class GreetingsController < ActionController::Base
  def show
    render plain: "Hello from Rails\n"
  end
end

# Kept in memory; nothing is stored.
ENV["DATABASE_URL"] ||= "sqlite3::memory:"
Rails.application.initialize!
run Rails.application
